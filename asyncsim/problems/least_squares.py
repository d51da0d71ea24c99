"""Linear regression: a quadratic made of data, real or synthetic."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncsim.problems.data import BUILT_IN, Dataset, numeric_targets, prepared
from asyncsim.problems.linear_model import LinearModel
from asyncsim.spec import Count, NonNegative, refuse


class LeastSquares(LinearModel):
    """f(x) = (1/2n) ‖A x − b‖² + (l2/2) ‖x‖².

    The rows of A and the entries of b are the samples of a `dataset` (with `target`, `scale`, `batch` and `l2` as in
    `Softmax`, but without a bias), or they are made up: with `samples` = n and `dimension` = d ≤ n,

        A = √n Q diag(√λ) Vᵀ,    b = A x° + `noise` · ξ,

    where λ is spaced geometrically from 1 to `condition_number`, so that these are the eigenvalues of AᵀA/n; Q (n × d)
    and V (d × d) have random orthonormal columns; x° and ξ are standard normal. They are addressed by `data_seed`, so
    the seed of a run does not change the problem.

    L and μ are the extreme eigenvalues of AᵀA/n + l2 I (μ is None where the smallest is 0), and
    x* = (AᵀA/n + l2 I)⁺ Aᵀb/n is the minimiser of least norm, by singular value decomposition.

    >>> problem = LeastSquares(samples=50, dimension=4, condition_number=10.0)
    >>> round(problem.smoothness, 9), round(problem.strong_convexity, 9)
    (10.0, 1.0)
    >>> bool(problem.minimum < 1e-20)  # without noise a solution fits every sample
    True
    """

    kind: Literal["least_squares"] = "least_squares"
    dataset: Dataset | None = None
    target: str | int | None = None
    scale: bool = True
    samples: Count | None = None
    dimension: Count = Field(default=None)  # type: ignore[assignment]  # found out where not given
    condition_number: Annotated[float, Field(ge=1)] = 1.0
    noise: NonNegative = 0.0
    data_seed: Annotated[int, Field(ge=0, lt=2**64)] = 0

    loss_curvature: ClassVar[float] = 1.0

    @model_validator(mode="after")
    def _one_source(self) -> LeastSquares:
        if (self.dataset is None) == (self.samples is None):
            raise refuse("give either 'dataset', or 'samples' with 'dimension'")
        idle = ("condition_number", "noise", "data_seed") if self.samples is None else ("target", "scale")
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise refuse(f"'{name}' has no effect with '{'samples' if self.samples else 'dataset'}': leave it out")
        if self.samples is not None:
            self._check_synthetic()
            return self
        known = BUILT_IN.get(self.dataset or "") if self.target is None else None
        features = known.features if known else self.table.shape[1] - 1
        if self.dimension not in (None, features):
            raise refuse(f"'dimension' is {self.dimension}, but '{self.dataset}' has {features} features")
        object.__setattr__(self, "dimension", features)
        return self

    def _check_synthetic(self) -> None:
        if self.dimension is None:
            raise refuse("'samples' needs 'dimension'")
        if self.samples is not None and self.samples < self.dimension:
            raise refuse(f"'samples' must be at least 'dimension' = {self.dimension}, got {self.samples}")
        if self.dimension == 1 and self.condition_number != 1:
            raise refuse(f"one eigenvalue has condition number 1, got {self.condition_number}")

    @property
    def outputs(self) -> int:
        """One score."""
        return 1

    @property
    def sample_count(self) -> int:
        """Number n of samples."""
        if self.samples is not None:
            return self.samples
        return BUILT_IN[self.dataset].samples if self.dataset in BUILT_IN else len(self.table)

    @cached_property
    def table(self) -> np.ndarray:
        """Row i holds row i of A and bᵢ, shape (n, d + 1)."""
        if self.dataset is None:
            return self._synthetic()
        features, targets = prepared(self.dataset, self.target, self.scale)
        return np.column_stack([features, numeric_targets(self.dataset, targets)])

    def _synthetic(self) -> np.ndarray:
        from asyncsim import streams

        count, size = self.samples or 0, self.dimension
        # Draws 0 … n − 1 are the samples, the next d make V, one more is x°.
        normals = streams.normals(self.data_seed, 0, -1, np.arange(count + size + 1), streams.DATA, size + 1)
        left, _ = np.linalg.qr(normals[:count, :size])
        right, _ = np.linalg.qr(normals[count:-1, :size])
        matrix = np.sqrt(count) * (left * np.sqrt(np.geomspace(1.0, self.condition_number, size))) @ right.T
        return np.column_stack([matrix, matrix @ normals[-1, :size] + self.noise * normals[:count, size]])

    @property
    def strong_convexity(self) -> float | None:
        """μ = λ_min(AᵀA/n) + l2; None where that is 0 to rounding."""
        smallest = float(self.covariance_spectrum[-1])
        singular = smallest <= self.covariance_spectrum[0] * np.finfo(float).eps * self.dimension
        return float((0.0 if singular else smallest) + self.l2) or None

    @cached_property
    def minimizer(self) -> np.ndarray:
        """x*, shape (d,): the minimiser of least norm."""
        count = len(self.table)
        left, singular, right = np.linalg.svd(self.features, full_matrices=False)
        kept = singular > singular[0] * np.finfo(float).eps * max(self.features.shape)
        factors = np.where(kept, singular / np.where(kept, singular**2 + count * self.l2, 1.0), 0.0)
        return (factors * (self.targets[0] @ left)) @ right

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return ½ (z − b)² of every sample."""
        return 0.5 * np.square(scores - targets)[..., 0, :]

    def slopes(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return z − b."""
        return scores - targets

    def bends(self, scores: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Return the change, at every x."""
        return np.broadcast_to(change, np.broadcast_shapes(scores.shape, change.shape))

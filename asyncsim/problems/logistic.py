"""Logistic regression: classification into two classes by a linear model."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from asyncsim.problems.classification import Classification


class Logistic(Classification):
    """f(x) = (1/n) Σᵢ log(1 + exp(−bᵢ aᵢᵀ x)) + (l2/2) ‖x‖², for two classes bᵢ = ±1.

    aᵢ holds the features of sample i and a last entry 1 for the bias, so d = features + 1. Of the two labels in the
    data (0 and 1, ±1, or any other two) the larger is +1. `dataset`, `target`, `scale`, `batch` and `l2` are those
    of `Softmax`: "breast_cancer" or a file, features divided by their largest absolute value unless `scale` is
    false, `batch` samples with replacement, the bias regularised like everything else.

    The second derivative of log(1 + exp(−z)) is at most ¼, so L = ¼ λ_max((1/n) Σ aᵢ aᵢᵀ) + l2; μ = l2. x* and f*
    are known where l2 > 0, computed when first asked for.

    >>> problem = Logistic(dataset="breast_cancer", l2=0.01)
    >>> problem.dimension
    31
    >>> bool(problem.minimum < problem.value(np.zeros(31)))
    True
    """

    kind: Literal["logistic"] = "logistic"

    loss_curvature: ClassVar[float] = 0.25
    most_classes: ClassVar[int | None] = 2

    @property
    def outputs(self) -> int:
        """One score."""
        return 1

    @property
    def class_targets(self) -> np.ndarray:
        """The signs −1 and +1."""
        return 2.0 * self.classes[:, None] - 1.0

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return log(1 + exp(−b z)) of every sample."""
        return np.logaddexp(0.0, -scores * targets)[..., 0, :]

    def slopes(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return −b / (1 + exp(b z))."""
        return -0.5 * targets * (1.0 - np.tanh(0.5 * scores * targets))

    def bends(self, scores: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Return σ(z) (1 − σ(z)) times the change, with σ(z) = 1 / (1 + exp(−z))."""
        return 0.25 * (1.0 - np.square(np.tanh(0.5 * scores))) * change

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """Return 1 where the score is positive."""
        return (scores[..., 0, :] > 0).astype(np.int64)

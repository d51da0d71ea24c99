"""What problems with a data set share: samples drawn by address, and a share of them for each worker."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import PrivateAttr

from asyncsim.problems.base import Problem
from asyncsim.problems.shares import Held, Shares
from asyncsim.spec import Count, refuse
from asyncsim.trace import Row


class EmpiricalRisk(Problem):
    """f(x) = (1/n) Σᵢ ℓᵢ(x), a loss averaged over n samples; regularisation counts as part of every ℓᵢ.

    A stochastic gradient is the mean over `batch` samples drawn with replacement, over all where it is left out.

    Where the data are divided among the workers (`shared_out`, which a scenario does that says so of its workers),
    worker w draws from its own n_w samples only, so that what it sends estimates ∇f_w, the gradient of the mean loss
    f_w over them. The objective, with its gradient, minimum and metrics, stays that of all samples,
    f = Σ_w (n_w / n) f_w. Workers that contribute equally often descend on (1/M) Σ_w f_w instead, which is f where the
    shares are equally large, and else another function with another minimiser.

    A subclass gives `sample_count`, `gradient_over` and, where its samples have classes, `classes` and `class_count`.
    """

    batch: Count | None = None

    _shares: Shares | None = PrivateAttr(default=None)

    # --- what a subclass gives -------------------------------------------------------------------------------------

    if TYPE_CHECKING:

        @property
        def sample_count(self) -> int:
            """Number n of samples."""

        # Not there at run time where samples have no classes.
        @property
        def classes(self) -> np.ndarray:
            """The class 0, 1, … of each sample, shape (n,)."""

        @property
        def class_count(self) -> int:
            """Number of classes."""

    def gradient_over(self, x: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Return the gradient of the mean loss over samples, shape (k,), or (…, k) with x's leading axes."""
        raise NotImplementedError

    # --- what follows ----------------------------------------------------------------------------------------------

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return the mean over `batch` samples of its worker's share; over all of that where `batch` is None."""
        if self.batch is not None:
            return self.gradient_over(x, self.chosen(row, self.batch))
        if self._shares is None:
            return self.gradient(x)
        worker = np.asarray(row.worker)
        if not worker.ndim:
            return self.gradient_over(x, self.held.of(int(worker)))
        gradients = np.empty(x.shape)
        for one in np.unique(worker):
            gradients[worker == one] = self.gradient_over(x[worker == one], self.held.of(int(one)))
        return gradients

    def chosen(self, row: Row, size: int) -> np.ndarray:
        """Return the samples that a stochastic gradient uses, shape (…, size): drawn uniformly, with replacement."""
        from asyncsim import streams

        address = (row.seed, row.replica, row.worker, row.draw, streams.SAMPLE, size)
        if self._shares is None:
            return streams.integers(*address, self.sample_count)
        return self.held.drawn(streams.uniforms(*address), row.worker)

    # --- shares ----------------------------------------------------------------------------------------------------

    @property
    def shares(self) -> Shares | None:
        """How the data are divided among the workers; None where every worker has them all."""
        return self._shares

    def shared_out(self, shares: Shares | None) -> Any:
        """Return this problem with its data divided among the workers; with None, every worker has them all.

        Which samples a worker holds is found out when first asked for, and not pickled.
        """
        if shares == self._shares:
            return self
        if shares is not None:
            self._check(shares)
        other = copy.copy(self)
        other.__dict__.pop("held", None)
        other._shares = shares
        return other

    def _check(self, shares: Shares) -> None:
        """Refuse shares that some worker would have no sample of."""
        workers, kind = shares.workers, getattr(self, "kind", type(self).__name__)
        if shares.split != "iid" and not hasattr(type(self), "classes"):
            raise refuse(f"'{shares.split}' divides classes, and '{kind}' has none: use split = 'iid'")
        if workers > self.sample_count:
            raise refuse(f"{workers:,} workers cannot have a sample each, as there are {self.sample_count:,}")
        if shares.split == "one_class":
            classes = self.class_count
            if workers < classes:
                raise refuse(
                    f"'one_class' needs a worker for each of the {classes} classes, got {workers}: the samples "
                    "of the others would be with nobody"
                )
            if workers > classes:  # the data need not be read to know that every class has a sample
                needed = (workers - np.arange(classes) + classes - 1) // classes
                lacking = np.flatnonzero(np.bincount(self.classes, minlength=classes) < needed)
                if lacking.size:
                    place = int(lacking[0])
                    raise refuse(
                        f"{int(needed[place])} workers would share class {place}, which has "
                        f"{int((self.classes == place).sum())} samples"
                    )

    @cached_property
    def held(self) -> Held:
        """Who holds which samples, where the data are divided."""
        if self._shares is None:
            raise ValueError("the data are not divided: every worker has them all")
        return self._shares.held(self.sample_count, None if self._shares.split == "iid" else self.classes)

    def model_copy(self, **changes: Any) -> Any:
        """Return a checked copy with some fields changed, its data divided in the same way."""
        return super().model_copy(**changes).shared_out(self._shares)

    def __eq__(self, other: object) -> bool:
        """Compare what was given, and the division of the data."""
        return super().__eq__(other) and self._shares == other._shares  # type: ignore[attr-defined]

    __hash__ = Problem.__hash__

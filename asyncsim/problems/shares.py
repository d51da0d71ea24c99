"""Who holds which samples: a data set divided among the workers, each sample with exactly one of them."""

from __future__ import annotations

import heapq
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from asyncsim.spec import Count, Positive, Spec, refuse


class DataSplit(Spec):
    """How a data set is divided among the workers: `split` = "iid", "one_class" or "dirichlet" with its `alpha`."""

    split: Literal["iid", "one_class", "dirichlet"]
    alpha: Positive | None = None

    @model_validator(mode="after")
    def _alpha_of_dirichlet(self) -> DataSplit:
        if self.split == "dirichlet" and self.alpha is None:
            raise refuse("split = 'dirichlet' needs 'alpha', a positive number: the smaller, the less alike the shares")
        if self.split != "dirichlet" and self.alpha is not None:
            raise refuse(f"'alpha' belongs to split = 'dirichlet', not '{self.split}'")
        return self

    def among(self, workers: int, *, seed: int) -> Shares:
        """Return the division among so many workers that the seed decides."""
        return Shares(split=self.split, alpha=self.alpha, workers=workers, seed=seed)


class Shares(DataSplit):
    """The division of a data set among `workers`: who holds what follows from `split` and `seed`, and nothing else.

    Let n samples have classes 0 … C − 1, and let every sample have its own addressed random number (worker −1, draw =
    number of the sample, purpose SHARES), which puts samples into a random order. M is the number of workers.

    - "iid": the samples in random order, cut into M parts whose sizes differ by at most one.
    - "one_class": worker w holds class w mod C only. Workers of the same class share it, in random order, their sizes
      differing by at most one. There must be a worker for every class, M ≥ C.
    - "dirichlet": for every class, proportions p₁ … p_M ~ Dirichlet(α, …, α), so E p = 1/M and
      Var p = (1/M)(1 − 1/M) / (Mα + 1); its samples in random order are cut at the multiples of p nearest to whole
      samples. A worker left without any sample then takes one, the first in random order, from the one that holds most
      (the lowest numbered of several), one worker after another.

    p is made of gamma numbers (worker, draw = class), G ~ Gamma(α) as G' U^(1/α) with G' ~ Gamma(α + 1) and U uniform,
    taken in logarithms so that no α is too small. Label proportions per class are those of M. Yurochkin et al.,
    "Bayesian nonparametric federated learning of neural networks", ICML 2019; T.-M. H. Hsu, H. Qi and M. Brown,
    "Measuring the effects of non-identical data distribution for federated visual classification", 2019, draw each
    worker's classes from the same law instead.

    >>> held = Shares(split="iid", workers=3, seed=7).held(samples=10)
    >>> held.sizes.tolist(), sorted(held.samples.tolist()) == list(range(10))
    ([4, 3, 3], True)
    """

    workers: Count
    seed: Annotated[int, Field(ge=0, lt=2**64)]

    def held(self, samples: int, classes: np.ndarray | None = None) -> Held:
        """Return who holds which of n = `samples`; `classes`, shape (n,), are needed unless the split is "iid"."""
        from asyncsim import streams

        order = np.argsort(streams.uniforms(self.seed, 0, -1, np.arange(samples), streams.SHARES, 1)[:, 0])
        if self.split == "iid":
            owner = np.empty(samples, dtype=np.int64)
            owner[order] = _evenly(samples, self.workers)
        else:
            assert classes is not None
            owner = self._by_class(order, classes)
            _everyone_holds_one(owner, order, self.workers)
        sizes = np.bincount(owner, minlength=self.workers)
        return Held(np.argsort(owner, kind="stable"), np.cumsum(sizes) - sizes, sizes)

    def _by_class(self, order: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the owner of each sample, where every class is divided apart from the others."""
        owner = np.empty(classes.size, dtype=np.int64)
        count = int(classes.max()) + 1
        proportions = None if self.alpha is None else self.proportions(count)
        for label in range(count):
            members = order[classes[order] == label]
            if proportions is None:
                own = np.arange(label, self.workers, count)
                owner[members] = own[_evenly(members.size, own.size)]
            else:
                ends = np.rint(np.cumsum(proportions[label]) * members.size).astype(np.int64)
                ends[-1] = members.size
                owner[members] = np.repeat(np.arange(self.workers), np.diff(ends, prepend=0))
        return owner

    def proportions(self, classes: int) -> np.ndarray:
        """Return what each worker gets of each class where the split is "dirichlet", shape (classes, workers)."""
        from asyncsim import streams
        from asyncsim.durations import Gamma

        alpha = float(self.alpha or 0.0)
        law, workers = Gamma(shape=alpha + 1.0, mean=alpha + 1.0), range(self.workers)
        larger = [law.sample(self.seed, 0, w, 0, size=classes, purpose=streams.SHARES) for w in workers]
        uniform = streams.uniforms(self.seed, 0, np.array(workers), np.arange(classes)[:, None], streams.SHARES, 1)
        scaled = np.log(uniform[..., 0]) + alpha * np.log(np.transpose(larger))  # alpha times the logarithm of G
        with np.errstate(over="ignore"):
            powers = np.exp((scaled - scaled.max(axis=1, keepdims=True)) / alpha)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


class Held(NamedTuple):
    """Worker w holds ``samples[starts[w] : starts[w] + sizes[w]]``, in increasing order."""

    samples: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    def of(self, worker: int) -> np.ndarray:
        """Return the samples of one worker, shape (its size,)."""
        return self.samples[self.starts[worker] : self.starts[worker] + self.sizes[worker]]

    def drawn(self, uniforms: np.ndarray, worker: Any) -> np.ndarray:
        """Return a sample of its worker's share for each uniform number; `worker` has the shape but for the last axis.

        The uniform numbers keep away from 1 by 2⁻⁵³, so that rounding cannot lead beyond the last sample.
        """
        worker = np.asarray(worker)[..., None]
        return self.samples[self.starts[worker] + (uniforms * self.sizes[worker]).astype(np.int64)]

    def counts(self, classes: np.ndarray) -> np.ndarray:
        """Return how many samples of each class each worker holds, shape (workers, classes)."""
        count = int(classes.max()) + 1
        owner = np.repeat(np.arange(self.sizes.size), self.sizes)
        found = np.bincount(owner * count + classes[self.samples], minlength=self.sizes.size * count)
        return found.reshape(self.sizes.size, count)


def _evenly(samples: int, parts: int) -> np.ndarray:
    """Return the part 0 … parts − 1 of each sample, in order, sizes differing by at most one."""
    return np.repeat(np.arange(parts), samples // parts + (np.arange(parts) < samples % parts))


def _everyone_holds_one(owner: np.ndarray, order: np.ndarray, workers: int) -> None:
    """Change owners so that every worker holds a sample: who holds most gives the first of its own in random order."""
    sizes = np.bincount(owner, minlength=workers)
    poor = np.flatnonzero(sizes == 0)
    if not poor.size:
        return
    grouped = order[np.argsort(owner[order], kind="stable")]
    first = np.cumsum(sizes) - sizes
    rich = [(-int(size), worker) for worker, size in enumerate(sizes.tolist()) if size]
    heapq.heapify(rich)
    for worker in poor:
        size, giver = heapq.heappop(rich)
        owner[grouped[first[giver]]] = worker
        first[giver] += 1
        heapq.heappush(rich, (size + 1, giver))

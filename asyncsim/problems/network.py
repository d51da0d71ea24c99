"""What neural networks share: labelled data, a loss, the cross-entropy if no other, parts of a flat vector."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import model_validator

from asyncsim.problems.complex_step import hessian_vector
from asyncsim.problems.data import BUILT_IN, Dataset, class_codes, prepared
from asyncsim.problems.empirical_risk import EmpiricalRisk

#: How many numbers a full evaluation holds for one layer at once: 2 MB.
NUMBERS_AT_ONCE = 1 << 18


class LabelledData(EmpiricalRisk):
    """A loss averaged over labelled data."""

    dataset: Dataset = "digits"
    target: str | int | None = None
    scale: bool = True

    @model_validator(mode="after")
    def _check_data(self) -> LabelledData:
        if self.dataset not in BUILT_IN or self.target is not None:
            _ = self.classes  # reads the file, so whatever is wrong with it is said now
        return self

    @cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        features, targets = prepared(self.dataset, self.target, self.scale)
        return features, class_codes(self.dataset, targets)

    @property
    def features(self) -> np.ndarray:
        """The features aᵢ, shape (n, p)."""
        return self._data[0]

    @property
    def classes(self) -> np.ndarray:
        """The class 0, 1, … of each sample, shape (n,); classes are in the order of their labels."""
        return self._data[1]

    @property
    def sample_count(self) -> int:
        """Number n of samples."""
        return BUILT_IN[self.dataset].samples if self.dataset in BUILT_IN else len(self.classes)

    @cached_property
    def class_count(self) -> int:
        """Number of classes."""
        return BUILT_IN[self.dataset].classes if self.dataset in BUILT_IN else int(self.classes.max()) + 1

    @cached_property
    def feature_count(self) -> int:
        """Number of features p."""
        return BUILT_IN[self.dataset].features if self.dataset in BUILT_IN else self.features.shape[1]


class Network(LabelledData):
    """f(x) = (1/n) Σᵢ [log Σ_c exp(z_c(aᵢ)) − z_{bᵢ}(aᵢ)], the cross-entropy of a network's scores z of its classes bᵢ.

    A subclass gives the shapes of its parts, which x holds one after another, and how scores and derivatives are
    computed from them; and, if it is no classifier, other `losses`. Where it does so for leading axes, replicas go
    together; features have shape (…, samples, p).
    """

    # --- what a subclass gives -------------------------------------------------------------------------------------

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of weights, the first of two axes being that of the outputs, and of biases, which have one."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """How many numbers the largest layer holds for one sample."""
        raise NotImplementedError

    def forward(self, parts: list[np.ndarray], features: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return the scores, shape (…, samples, classes), and what `backward` needs to know."""
        raise NotImplementedError

    def backward(self, parts: list[np.ndarray], seen: Any, slopes: np.ndarray) -> list[np.ndarray]:
        """Return the derivative by each part, summed over samples, for the derivative by the scores."""
        raise NotImplementedError

    def losses(self, scores: np.ndarray, features: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the loss of each sample, shape (…, samples), and its derivative by the scores: the cross-entropy."""
        return _cross_entropy(scores, classes)

    # --- what follows ----------------------------------------------------------------------------------------------

    @cached_property
    def dimension(self) -> int:
        """Number of weights and biases d."""
        return sum(math.prod(shape) for shape in self.shapes)

    def parts(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the weights and biases as views of x, shapes (…, *shape)."""
        ends = np.cumsum([0, *(math.prod(shape) for shape in self.shapes)])
        cut = zip(self.shapes, ends[:-1], ends[1:], strict=True)
        return [x[..., low:high].reshape(*x.shape[:-1], *shape) for shape, low, high in cut]

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return the starting point of each replica, shape (…, d): weights N(0, 1/inputs) by address, biases 0."""
        from asyncsim import streams

        parts = []
        for place, shape in enumerate(self.shapes):
            size = math.prod(shape)
            if len(shape) == 1:
                parts.append(np.zeros((*np.shape(replica), size)))
            else:
                normals = streams.normals(seed, replica, -1, place, streams.START, size)
                parts.append(normals / math.sqrt(size // shape[0]))
        return np.concatenate(parts, axis=-1)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(x), shape (…)."""
        parts, total = self.parts(x), np.zeros(x.shape[:-1])
        for features, classes in self._pieces(x):
            total = total + self.losses(self.forward(parts, features)[0], features, classes)[0].sum(axis=-1)
        return (total / len(self.classes))[()]

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return ∇f(x), shape (…, d)."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return f(x) and ∇f(x) from one pass over the data."""
        value, gradient = np.zeros(x.shape[:-1], dtype=x.dtype), np.zeros(x.shape, dtype=x.dtype)
        for features, classes in self._pieces(x):
            losses, part = self._slopes(x, features, classes)
            value, gradient = value + losses.sum(axis=-1), gradient + part
        return (value / len(self.classes))[()], gradient / len(self.classes)

    def gradient_over(self, x: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Return the gradient of the mean loss over samples, shape (k,), or (…, k) with x's leading axes."""
        count = samples.shape[-1]
        step = count if samples.ndim > 1 else self._at_once(x)
        pieces = [samples[..., low : low + step] for low in range(0, count, step)]
        sums = [self._slopes(x, self.features[some], self.classes[some])[1] for some in pieces]
        return sum(sums[1:], sums[0]) / count

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f(x) v, shape (…, d), by a complex step."""
        return hessian_vector(self.gradient, x, vector)

    def accuracy(self, x: np.ndarray) -> np.ndarray:
        """Return the share of the samples whose class has the largest score, shape (…)."""
        parts, right = self.parts(x), np.zeros(x.shape[:-1])
        for features, classes in self._pieces(x):
            right = right + (self.forward(parts, features)[0].argmax(axis=-1) == classes).sum(axis=-1)
        return (right / len(self.classes))[()]

    def _pieces(self, x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features and classes of a few samples at a time."""
        step = self._at_once(x)
        for low in range(0, len(self.classes), step):
            yield self.features[low : low + step], self.classes[low : low + step]

    def _at_once(self, x: np.ndarray) -> int:
        """Return how many samples are few."""
        return max(1, NUMBERS_AT_ONCE // (self.width * math.prod(x.shape[:-1])))

    def _slopes(self, x: np.ndarray, features: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses, shape (…, samples), and the gradient of their sum, shape (…, d)."""
        parts = self.parts(x)
        scores, seen = self.forward(parts, features)
        losses, slopes = self.losses(scores, features, classes)
        pieces = self.backward(parts, seen, slopes)
        return losses, np.concatenate([piece.reshape(*x.shape[:-1], -1) for piece in pieces], axis=-1)


def _cross_entropy(scores: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each sample, and its derivative by the scores."""
    largest = scores.real.max(axis=-1, keepdims=True)
    powers = np.exp(scores - largest)
    total = powers.sum(axis=-1, keepdims=True)
    right = np.broadcast_to(classes, scores.shape[:-1])[..., None]
    losses = (largest + np.log(total) - np.take_along_axis(scores, right, axis=-1))[..., 0]
    slopes = powers / total
    np.put_along_axis(slopes, right, np.take_along_axis(slopes, right, axis=-1) - 1.0, axis=-1)
    return losses, slopes

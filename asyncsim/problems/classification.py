"""What logistic and softmax regression share: labelled data and a bias."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
from pydantic import model_validator

from asyncsim.problems.data import BUILT_IN, Dataset, class_codes, prepared
from asyncsim.problems.linear_model import LinearModel
from asyncsim.spec import refuse


class Classification(LinearModel):
    """A linear model of labelled data; aᵢ holds the features of sample i and a last entry 1 for the bias."""

    dataset: Dataset
    target: str | int | None = None
    scale: bool = True

    #: The largest number of classes that the loss takes.
    most_classes: ClassVar[int | None] = None

    @model_validator(mode="after")
    def _check_data(self) -> Classification:
        if self.dataset not in BUILT_IN or self.target is not None:
            _ = self.classes  # reads the file, so whatever is wrong with it is said now
        elif self.most_classes is not None and self.class_count > self.most_classes:
            raise refuse(f"'{self.dataset}' has {self.class_count} classes, allowed: {self.most_classes}; try softmax")
        return self

    @cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        return prepared(self.dataset, self.target, self.scale)

    @cached_property
    def classes(self) -> np.ndarray:
        """The class 0, 1, … of each sample, shape (n,); classes are in the order of their labels."""
        return class_codes(self.dataset, self._data[1], self.most_classes)

    @property
    def sample_count(self) -> int:
        """Number n of samples."""
        return BUILT_IN[self.dataset].samples if self.dataset in BUILT_IN else len(self.classes)

    @cached_property
    def class_count(self) -> int:
        """Number of classes."""
        return BUILT_IN[self.dataset].classes if self.dataset in BUILT_IN else int(self.classes.max()) + 1

    @cached_property
    def dimension(self) -> int:
        """d = outputs · (features + 1)."""
        features = BUILT_IN[self.dataset].features if self.dataset in BUILT_IN else self._data[0].shape[1]
        return self.outputs * (features + 1)

    @property
    def class_targets(self) -> np.ndarray:
        """The targets bᵢ that stand for the classes, shape (n, outputs)."""
        raise NotImplementedError

    @cached_property
    def table(self) -> np.ndarray:
        """Row i holds the features of sample i, 1, and its target."""
        features = self._data[0]
        return np.hstack([features, np.ones((len(features), 1)), self.class_targets])

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """Return the class of every sample that the scores speak for, shape (…, samples)."""
        raise NotImplementedError

    def accuracy(self, x: np.ndarray) -> np.ndarray:
        """Return the share of the samples whose class is predicted rightly, shape (…)."""
        return self._by_replicas(x, lambda rows: (self.predicted(self._scores(rows)) == self.classes).mean(axis=-1), ())

"""A user's own objects, each with one mistake."""

from asyncsim.durations import Law
from asyncsim.policies import Policy


class Bowl:
    """A problem without a mistake."""

    dimension = 2

    def __init__(self, depth):
        if depth <= 0:
            raise ValueError(f"depth must be positive,\ngot {depth}")
        self.depth = depth

    def value(self, x):
        return 0.5 * self.depth * (x**2).sum(axis=-1)

    def gradient(self, x):
        return self.depth * x


class NoGradient:
    dimension = 2

    def value(self, x):
        return 0.5 * (x**2).sum(axis=-1)


class Negative(Law):
    """Uniform between -1 and 1."""

    @property
    def mean(self):
        return 0.0

    @property
    def variance(self):
        return 1 / 3

    def quantile(self, probability):
        return 2.0 * probability - 1.0


class Hundred(Policy):
    """A hundred gradients, one from each worker, and each worker waits."""

    def gradients_per_update(self, workers):
        return 100

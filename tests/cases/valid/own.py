"""A user's own law, policy, problem and method, as a scenario beside this file names them."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncsim.durations import Law
from asyncsim.methods import Method, State
from asyncsim.policies import Policy


class Triangular(Law):
    """Density falling in a straight line from 0 to `longest`."""

    law: str = "own:Triangular"
    longest: float

    @property
    def mean(self) -> float:
        return self.longest / 3.0

    @property
    def variance(self) -> float:
        return self.longest**2 / 18.0

    def quantile(self, probability: Any) -> Any:
        return self.longest * (1.0 - np.sqrt(1.0 - np.asarray(probability)))


class Pairs(Policy):
    """Two gradients make an update; who gave one waits."""

    kind: str = "own:Pairs"

    def gradients_per_update(self, workers: int) -> int:
        return min(2, workers)


class Bowl:
    """f(x) = ½ depth ‖x‖²; derives from nothing."""

    dimension = 2

    def __init__(self, depth: float):
        self.depth = depth

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        return np.ones((*np.shape(replica), self.dimension))

    def value(self, x: np.ndarray) -> np.ndarray:
        return 0.5 * self.depth * np.square(x).sum(axis=-1)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        return self.depth * x


class SignDescent(Method):
    """Step by the sign of the mean gradient."""

    kind: str = "own:SignDescent"
    step: float

    def apply(self, problem: Any, state: State, payloads: list[Any], rows: list[Any]) -> State:
        return State(state.x - self.step * np.sign(sum(payloads)))

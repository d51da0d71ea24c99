"""A network with one hidden layer of tanh units."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np

from asyncsim.problems.network import Network
from asyncsim.spec import Count


class TanhNetwork(Network):
    """The cross-entropy of a classifier with scores z(a) = V tanh(W a + b) + c, smooth and not convex.

    W has `hidden` rows. x holds W, b, V, c, each row by row, so d = hidden · (features + 1) + classes · (hidden + 1).
    `dataset`, `target`, `scale` and `batch` are those of `Softmax`, "digits" if left out. Exchanging hidden units, or
    changing their signs, changes nothing, which makes many minima and saddles between them. Runs begin with weights
    N(0, 1/inputs) by address, and biases 0.

    >>> problem = TanhNetwork(hidden=5, batch=16)
    >>> problem.dimension == 5 * 65 + 10 * 6
    True
    """

    kind: Literal["tanh_network"] = "tanh_network"
    hidden: Count

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """W, b, V, c."""
        return [(self.hidden, self.feature_count), (self.hidden,), (self.class_count, self.hidden), (self.class_count,)]

    @property
    def width(self) -> int:
        """Hidden units, or features where they are more."""
        return max(self.hidden, self.feature_count)

    def forward(self, parts: list[np.ndarray], features: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return the scores, and the features with what the hidden units say."""
        first, first_bias, second, second_bias = parts
        hidden = np.tanh(features @ first.swapaxes(-1, -2) + first_bias[..., None, :])
        return hidden @ second.swapaxes(-1, -2) + second_bias[..., None, :], (features, hidden)

    def backward(self, parts: list[np.ndarray], seen: Any, slopes: np.ndarray) -> list[np.ndarray]:
        """Return the derivatives by W, b, V and c."""
        features, hidden = seen
        inside = (slopes @ parts[2]) * (1.0 - np.square(hidden))
        return [
            inside.swapaxes(-1, -2) @ features,
            inside.sum(axis=-2),
            slopes.swapaxes(-1, -2) @ hidden,
            slopes.sum(axis=-2),
        ]

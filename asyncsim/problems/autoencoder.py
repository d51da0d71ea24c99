"""An autoencoder: a network that must bring pictures through a narrow layer."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncsim.problems.network import Network
from asyncsim.spec import Count, NonNegative, refuse


class Autoencoder(Network):
    """f(x) = (1/np) Σᵢ ‖z(aᵢ) − aᵢ‖², the mean squared error of pictures aᵢ (p pixels) and what a network returns.

    z(a) = W_k σ(… σ(W₁ a + b₁) …) + b_k with as many hidden layers as `hidden` has entries, each that wide;
    `activation` σ is "tanh" or "relu". x holds W₁, b₁, W₂, b₂, …. With `tied` weights the layers of the second half are
    the transposes of the first, `hidden` must read the same from both ends, and x holds W₁, b₁, … of the first half,
    then the biases of the second. `dataset`, `target`, `scale` and `batch` are those of `Softmax`, "digits" if left
    out; the classes are used by nothing but a split of the data by class.

    Where all weights are 0 and the last biases are the mean picture, f is stationary and is the variance of the
    pictures. With one hidden layer this is a strict saddle of curvature −(2/p) λ_max(Cov a) (σ = tanh, untied), with
    more it is flatter: all weights of a way through the network must grow before any has an effect. Runs begin with
    weights `start_scale` · N(0, 1/inputs) by address, and biases 0: the smaller `start_scale`, the closer to the saddle
    descent comes, and the longer it stays.

    f is not differentiable where what "relu" is given is 0; the gradient takes 0 there.

    >>> problem = Autoencoder(hidden=[32, 8, 32], batch=64)
    >>> problem.dimension == (64 * 32 + 32) + (32 * 8 + 8) + (8 * 32 + 32) + (32 * 64 + 64)
    True
    """

    kind: Literal["autoencoder"] = "autoencoder"
    hidden: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = (32, 8, 32)
    activation: Literal["tanh", "relu"] = "tanh"
    tied: bool = False
    start_scale: NonNegative = 1.0

    @model_validator(mode="after")
    def _check_tied(self) -> Autoencoder:
        if self.tied and (self.hidden != self.hidden[::-1] or len(self.hidden) % 2 == 0):
            raise refuse(
                "'tied' weights need an odd number of hidden layers whose widths read the same from both ends, got "
                f"{list(self.hidden)}"
            )
        return self

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Weights and biases in turn; with tied weights the last ones are biases alone."""
        widths = (self.feature_count, *self.hidden, self.feature_count)
        layers = [((out, inside), (out,)) for inside, out in pairwise(widths)]
        half = len(layers) // 2
        owned = [layer if not self.tied or place < half else layer[1:] for place, layer in enumerate(layers)]
        return [shape for layer in owned for shape in layer]

    @property
    def width(self) -> int:
        """The widest layer, pictures included."""
        return max(self.feature_count, *self.hidden)

    def _layers(self, parts: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return weights and biases of all layers."""
        if not self.tied:
            return parts[::2], parts[1::2]
        half = 2 * (len(parts) // 3)
        weights = parts[:half:2]
        return weights + [weight.swapaxes(-1, -2) for weight in weights[::-1]], parts[1:half:2] + parts[half:]

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return the starting point of each replica, shape (…, d); biases are 0."""
        return self.start_scale * super().initial(seed, replica)

    def forward(self, parts: list[np.ndarray], features: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return the network's pictures, and what went into each layer."""
        *inner, last = zip(*self._layers(parts), strict=True)
        seen = [features]
        for layer in inner:
            inside = _affine(seen[-1], *layer)
            seen.append(np.tanh(inside) if self.activation == "tanh" else np.where(inside.real > 0, inside, 0.0))
        return _affine(seen[-1], *last), seen

    def backward(self, parts: list[np.ndarray], seen: Any, slopes: np.ndarray) -> list[np.ndarray]:
        """Return the derivative by each part."""
        weights = self._layers(parts)[0]
        by_weight: list[np.ndarray] = []
        by_bias: list[np.ndarray] = []
        for place in range(len(weights) - 1, -1, -1):
            by_weight.insert(0, slopes.swapaxes(-1, -2) @ seen[place])
            by_bias.insert(0, slopes.sum(axis=-2))
            if place:
                bend = 1.0 - np.square(seen[place]) if self.activation == "tanh" else seen[place].real > 0
                slopes = (slopes @ weights[place]) * bend
        half = len(weights) // 2 if self.tied else len(weights)
        if self.tied:  # a weight's transpose is the layer as far from the other end
            by_weight = [one + by_weight[-1 - place].swapaxes(-1, -2) for place, one in enumerate(by_weight[:half])]
        return [part for layer in zip(by_weight, by_bias[:half], strict=True) for part in layer] + by_bias[half:]

    def losses(self, scores: np.ndarray, features: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean squared error of each picture, and its derivative by the picture's pixels."""
        errors = scores - features
        return np.square(errors).mean(axis=-1), errors * (2.0 / self.feature_count)

    def accuracy(self, x: np.ndarray) -> np.ndarray:
        """Raise: nothing is classified."""
        raise NotImplementedError


def _affine(inputs: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.asarray(inputs @ weight.swapaxes(-1, -2) + bias[..., None, :])

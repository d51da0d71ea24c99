"""A small convolutional network for pictures."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from asyncsim.problems.data import picture_shape
from asyncsim.problems.network import Network
from asyncsim.spec import Count, refuse


class ConvNetwork(Network):
    """The cross-entropy of one convolution, max pooling 2 × 2, ReLU and a dense layer.

    `filters` filters of `kernel` × `kernel` weights slide over a picture one pixel at a time and stay inside it; of
    each 2 × 2 of their answers the largest goes on, where it is positive (an odd row or column at the edge is
    dropped); a dense layer makes the scores of the classes of them. x holds filters, their biases, the dense weights,
    their biases. `dataset` is "digits" (8 × 8), a file of square pictures as for `Softmax`, or a file of the MNIST
    data, such as train-images-idx3-ubyte.gz, with train-labels-idx1-ubyte.gz beside it. `target`, `scale` and `batch`
    are those of `Softmax`. Runs begin with weights N(0, 1/inputs) by address, and biases 0.

    f is not differentiable where two answers are equally large or one is 0; the gradient takes the first and 0 there.

    >>> problem = ConvNetwork(filters=4, batch=16)
    >>> problem.dimension == 4 * 9 + 4 + 10 * (4 * 3 * 3) + 10
    True
    """

    kind: Literal["conv_network"] = "conv_network"
    filters: Count = 8
    kernel: Count = 3

    @model_validator(mode="after")
    def _fits(self) -> ConvNetwork:
        height, width = self._picture
        if self.kernel + 1 > min(height, width):
            raise refuse(
                f"'kernel' must be at most {min(height, width) - 1} for pictures of {height} × {width}, so that there "
                f"are 2 × 2 answers, got {self.kernel}"
            )
        return self

    @cached_property
    def _picture(self) -> tuple[int, int]:
        return picture_shape(self.dataset, self.feature_count)

    @property
    def _pooled(self) -> tuple[int, int]:
        height, width = self._picture
        return (height - self.kernel + 1) // 2, (width - self.kernel + 1) // 2

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Filters, their biases, dense weights, their biases."""
        height, width = self._pooled
        dense = (self.class_count, height * width * self.filters)
        return [(self.filters, self.kernel**2), (self.filters,), dense, (self.class_count,)]

    @property
    def width(self) -> int:
        """The answers of all filters, or the pixels that they see."""
        height, width = self._pooled
        return 4 * height * width * max(self.filters, self.kernel**2)

    def _windows(self, features: np.ndarray) -> np.ndarray:
        """Return what filters see, (…, samples, places, 4, kernel²): the four windows of each 2 × 2 side by side."""
        height, width = self._pooled
        pictures = features.reshape(*features.shape[:-1], *self._picture)
        seen = np.lib.stride_tricks.sliding_window_view(pictures, (self.kernel, self.kernel), axis=(-2, -1))
        seen = seen[..., : 2 * height, : 2 * width, :, :]
        fours = seen.reshape(*features.shape[:-1], height, 2, width, 2, self.kernel**2)
        fours = fours.swapaxes(-4, -3)
        return fours.reshape(*features.shape[:-1], height * width, 4, self.kernel**2)

    def forward(self, parts: list[np.ndarray], features: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return the scores, and windows, winners and what went into the dense layer."""
        filters, filter_bias, dense, dense_bias = parts
        windows = self._windows(features)
        flat = windows.reshape(*windows.shape[:-4], -1, self.kernel**2)
        answers = flat @ filters.swapaxes(-1, -2) + filter_bias[..., None, :]
        answers = answers.reshape(*answers.shape[:-2], *windows.shape[-4:-1], self.filters)
        winners = answers.real.argmax(axis=-2)[..., None, :]
        largest = np.take_along_axis(answers, winners, axis=-2)[..., 0, :]
        inside = np.where(largest.real > 0, largest, 0.0)
        inside = inside.reshape(*inside.shape[:-2], -1)
        return inside @ dense.swapaxes(-1, -2) + dense_bias[..., None, :], (flat, winners, inside)

    def backward(self, parts: list[np.ndarray], seen: Any, slopes: np.ndarray) -> list[np.ndarray]:
        """Return the derivatives by filters, their biases, dense weights, their biases."""
        flat, winners, inside = seen
        back = np.where(inside.real > 0, slopes @ parts[2], 0.0)
        back = back.reshape(*back.shape[:-1], -1, 1, self.filters)
        answers = np.zeros((*back.shape[:-2], 4, self.filters), dtype=back.dtype)
        np.put_along_axis(answers, winners, back, axis=-2)
        answers = answers.reshape(*answers.shape[:-4], -1, self.filters)
        return [
            answers.swapaxes(-1, -2) @ flat,
            answers.sum(axis=-2),
            slopes.swapaxes(-1, -2) @ inside,
            slopes.sum(axis=-2),
        ]

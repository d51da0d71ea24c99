"""Sparsifiers: k of the d coordinates as they are, zero elsewhere."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from asyncsim.compressors.base import MOST_DRAWS, NUMBER, Address, Sparse, floats, shared
from asyncsim.compressors.largest import largest


class Sparsifier(Sparse):
    """C(x)_i = x_i for i in a set S of k coordinates, and 0 elsewhere; sends x_S in order of i, then what tells S."""

    def choose(self, vector: np.ndarray, address: Address) -> tuple[np.ndarray, np.ndarray]:
        """Return S in increasing order, and x_S, each of shape (k,)."""
        raise NotImplementedError

    def pack_indices(self, indices: np.ndarray, dimension: int) -> bytes | memoryview:
        """Return the bytes that tell S to a receiver who knows the address."""
        raise NotImplementedError

    def unpack_indices(self, data: memoryview | bytes, dimension: int, address: Address) -> np.ndarray:
        """Return S from those bytes."""
        raise NotImplementedError

    def index_bytes(self, dimension: int) -> int:
        """Return how many these are."""
        raise NotImplementedError

    def pack(self, vector: np.ndarray, address: Address) -> bytes:
        """Return x_S, then what tells S."""
        indices, values = self.choose(vector, address)
        return b"".join((values.astype(NUMBER, copy=False).data, self.pack_indices(indices, vector.size)))

    def unpack(self, data: memoryview | bytes, dimension: int, address: Address) -> np.ndarray:
        """Return x_S in its places, and 0 elsewhere."""
        k = self.count(dimension)
        vector = np.zeros(dimension)
        vector[self.unpack_indices(memoryview(data)[8 * k :], dimension, address)] = floats(data, k)
        return vector

    def nbytes(self, dimension: int) -> int:
        """Return 8k and the bytes that tell S."""
        return 8 * self.count(dimension) + self.index_bytes(dimension)


class RandK(Sparsifier):
    """k coordinates, every set of k as likely as any other; 8k bytes, for the indices are shared randomness.

    All workers of a replica have the same indices at the same draw: S is a function of (seed, replica, draw), so the
    mean of what workers send has k coordinates too, and the receiver makes S itself. For a fixed address C is
    linear. A coordinate is in S with probability k/d, so

        E‖x − C(x)‖² = Σ_i x_i² P(i ∉ S) = (1 − k/d) ‖x‖²,

    which is μ = k/d with equality for every x. C is not multiplied by d/k, so it is biased: error feedback, not C,
    makes up for what is left out.

    Source: Stich, Cordonnier, Jaggi 2018, "Sparsified SGD with memory", Lemma A.1.

    >>> compressor = RandK(k=2)
    >>> mine, other = (compressor.encode(np.arange(1.0, 7.0), (7, 0, worker, 17)) for worker in (0, 1))
    >>> mine.nbytes, mine.data == other.data
    (16, True)
    >>> compressor.decode(mine).nonzero()[0].tolist() == compressor.indices(6, (7, 0, 0, 17)).tolist()
    True
    """

    kind: Literal["rand_k"] = "rand_k"
    linear: ClassVar[bool] = True

    def check(self, dimension: int) -> None:
        """Raise ValueError unless 1 ≤ k ≤ d and an address holds the random numbers for it."""
        k = self.count(dimension)
        if min(k, dimension - k) > MOST_DRAWS:
            raise ValueError(f"k = {k} of {dimension}: neither k nor the rest may exceed {MOST_DRAWS} coordinates")

    def indices(self, dimension: int, address: Address) -> np.ndarray:
        """Return S in increasing order, shape (k,), int64; the worker in the address does not matter."""
        from asyncsim.compressors.subsets import random_subset

        return random_subset(dimension, self.count(dimension), shared(address))

    def choose(self, vector: np.ndarray, address: Address) -> tuple[np.ndarray, np.ndarray]:
        """Return S, which does not depend on the vector, and x_S."""
        indices = self.indices(vector.size, address)
        return indices, vector[indices]

    def pack_indices(self, indices: np.ndarray, dimension: int) -> bytes:
        """Return nothing."""
        return b""

    def unpack_indices(self, data: memoryview | bytes, dimension: int, address: Address) -> np.ndarray:
        """Return S, made anew."""
        return self.indices(dimension, address)

    def index_bytes(self, dimension: int) -> int:
        """Return 0."""
        return 0


class TopK(Sparsifier):
    """The k coordinates of largest |x_i|, of equal ones those of lower index; k values and k indices of 4 bytes.

    What is left out is no larger than what is kept, so ‖x − C(x)‖² ≤ (1 − k/d) ‖x‖², with equality where all |x_i|
    are equal: μ = k/d. Indices take 8 bytes each beyond d = 2^32. NaN counts as larger than any number.

    Source: Stich, Cordonnier, Jaggi 2018, "Sparsified SGD with memory", Lemma A.1.

    >>> payload = TopK(k=2).encode([3.0, -1.0, 0.0, -4.0], (7, 0, 3, 17))
    >>> payload.nbytes, TopK(k=2).decode(payload).tolist()
    (24, [3.0, 0.0, 0.0, -4.0])
    """

    kind: Literal["top_k"] = "top_k"

    def choose(self, vector: np.ndarray, address: Address) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the k largest |x_i|, and these x_i."""
        return largest(vector, self.count(vector.size))

    def pack_indices(self, indices: np.ndarray, dimension: int) -> memoryview:
        """Return the indices."""
        return indices.astype(_index_type(dimension)).data

    def unpack_indices(self, data: memoryview | bytes, dimension: int, address: Address) -> np.ndarray:
        """Return the indices."""
        return np.frombuffer(data, dtype=_index_type(dimension), count=self.count(dimension))

    def index_bytes(self, dimension: int) -> int:
        """Return 4k, or 8k beyond d = 2^32."""
        return self.count(dimension) * _index_type(dimension).itemsize


def _index_type(dimension: int) -> np.dtype:
    return np.dtype("<u4" if dimension <= 2**32 else "<u8")

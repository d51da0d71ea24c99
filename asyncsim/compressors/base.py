"""What every compressor is: a rule that turns a vector into bytes, and bytes into a vector.

What both ends of a link know is never sent: the compressor itself, the dimension d, and the address
(seed, replica, worker, draw) of the message, from which both make the same random numbers (`asyncsim.streams`).
"""

from __future__ import annotations

from operator import index
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from asyncsim.spec import Count, Spec, refuse

#: (seed, replica, worker, draw) of a message.
Address = tuple[int, int, int, int]

#: How numbers lie in the bytes: 8 bytes each, lowest first, on every machine.
NUMBER = np.dtype("<f8")

#: Random numbers at one address; `asyncsim.streams` says the same, but with numba behind it.
MOST_DRAWS = 1 << 24


class Payload(NamedTuple):
    """A compressed vector: `data` is what travels; d = `dimension` and `address` are known at both ends."""

    data: bytes
    dimension: int
    address: Address

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return len(self.data)


class Compressor(Spec):
    """A rule C with `decode(encode(x, address))` = C(x), where E‖x − C(x)‖² ≤ (1 − μ) ‖x‖² with μ = `contraction(d)`.

    The expectation is over what the address stands for. A compressor of your own needs `check`, `encode`, `decode`,
    `nbytes`, `contraction` and `linear`; one that derives from this class gives `pack`, `unpack`, `nbytes` and
    `contraction`. Vectors have shape (d,) and become float64. Those with NaN or infinite entries are encoded like
    others, and what is decoded from what is sent of such an entry is not finite either.

    Source of the definition: Stich, Cordonnier, Jaggi 2018, "Sparsified SGD with memory", Definition 2.1.
    """

    #: Whether C(ax + by) = aC(x) + bC(y) at every fixed address.
    linear: ClassVar[bool] = False

    def check(self, dimension: int) -> None:
        """Raise ValueError where vectors of this dimension cannot be compressed so."""

    def pack(self, vector: np.ndarray, address: Address) -> bytes:
        """Return the bytes that stand for a vector that has passed `check`."""
        raise NotImplementedError

    def unpack(self, data: memoryview | bytes, dimension: int, address: Address) -> np.ndarray:
        """Return C(x), shape (d,), from what `pack` returned for x."""
        raise NotImplementedError

    def encode(self, vector: ArrayLike, address: Address) -> Payload:
        """Return what is sent in place of `vector`, shape (d,); its `nbytes` are `nbytes(d)`."""
        if np.iscomplexobj(vector):
            raise ValueError("a compressor takes real numbers, got complex ones")
        x = np.ascontiguousarray(vector, dtype=np.float64)
        if np.ndim(vector) != 1 or x.size == 0:
            raise ValueError(f"a compressor takes one vector of shape (d,), got shape {np.shape(vector)}")
        self.check(x.size)
        try:
            seed, replica, worker, draw = map(index, address)
        except (TypeError, ValueError):
            what = "an address is four whole numbers, (seed, replica, worker, draw)"
            raise ValueError(f"{what}, got {address!r}") from None
        return Payload(self.pack(x, (seed, replica, worker, draw)), x.size, (seed, replica, worker, draw))

    def decode(self, payload: Payload) -> np.ndarray:
        """Return C(x), a new array of shape (d,)."""
        if len(payload.data) != self.nbytes(payload.dimension):
            kind, sizes = type(self).__name__, (self.nbytes(payload.dimension), len(payload.data))
            raise ValueError(f"{kind} sends {sizes[0]} bytes for d = {payload.dimension}, got {sizes[1]}")
        return self.unpack(payload.data, payload.dimension, payload.address)

    def nbytes(self, dimension: int) -> int:
        """Return the bytes on the wire of every vector of this dimension."""
        raise NotImplementedError

    def contraction(self, dimension: int) -> float:
        """Return the μ in [0, 1] that holds for every vector of this dimension."""
        raise NotImplementedError


class Sparse(Compressor):
    """A compressor that sends k of the d coordinates: `k` of them, or the `fraction` k/d, rounded to the nearest k."""

    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    k: Count | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Any:
        if (self.fraction is None) == (self.k is None):
            raise refuse("give either 'fraction' or 'k', the coordinates that are sent")
        return self

    def count(self, dimension: int) -> int:
        """Return k for this d; raises ValueError unless 1 ≤ k ≤ d."""
        if self.k is not None:
            if self.k > dimension:
                raise ValueError(f"k = {self.k} exceeds the dimension, {dimension}")
            return self.k
        k = int(self.fraction * dimension + 0.5)  # type: ignore[operator]
        if k < 1:
            raise ValueError(f"fraction = {self.fraction} of {dimension} coordinates keeps none: k must be at least 1")
        return k

    def check(self, dimension: int) -> None:
        """Raise ValueError unless 1 ≤ k ≤ d."""
        self.count(dimension)

    def contraction(self, dimension: int) -> float:
        """Return k/d."""
        return self.count(dimension) / dimension


def floats(data: memoryview | bytes, count: int, start: int = 0) -> np.ndarray:
    """Return `count` float64 numbers that lie in the bytes from `start` on, read-only."""
    return np.frombuffer(data, dtype=NUMBER, count=count, offset=start).astype(np.float64, copy=False)


def shared(address: Address) -> Address:
    """Return the address of the randomness that all workers share at a draw."""
    seed, replica, _, draw = address
    return seed, replica, -1, draw

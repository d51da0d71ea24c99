"""No compression."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from asyncsim.compressors.base import NUMBER, Address, Compressor, floats


class Identity(Compressor):
    """C(x) = x: all d numbers of 8 bytes; μ = 1.

    >>> payload = Identity().encode([1.5, -2.0], (7, 0, 3, 17))
    >>> payload.nbytes, Identity().decode(payload).tolist()
    (16, [1.5, -2.0])
    """

    kind: Literal["identity"] = "identity"
    linear: ClassVar[bool] = True

    def pack(self, vector: np.ndarray, address: Address) -> bytes:
        """Return the numbers."""
        return vector.astype(NUMBER, copy=False).tobytes()

    def unpack(self, data: memoryview | bytes, dimension: int, address: Address) -> np.ndarray:
        """Return the vector."""
        return floats(data, dimension).copy()

    def nbytes(self, dimension: int) -> int:
        """Return 8d."""
        return 8 * dimension

    def contraction(self, dimension: int) -> float:
        """Return 1."""
        return 1.0

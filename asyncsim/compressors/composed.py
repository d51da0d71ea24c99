"""A sparsifier, then a quantizer for what is left."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from asyncsim.compressors.base import Address, Compressor
from asyncsim.compressors.quantized import QSGD, ScaledSign
from asyncsim.compressors.sparse import RandK, TopK


class Composed(Compressor):
    """C(x) = Q(x_S) in the places S that the `sparsifier` chooses, 0 elsewhere, with the `quantizer` Q for k numbers.

    Sends the bytes of Q for k numbers and those of the indices. What Q does wrong is in S, what the sparsifier leaves
    out is outside of S, so the two errors are orthogonal:

        E‖x − C(x)‖² = ‖x‖² − ‖x_S‖² + E‖x_S − Q(x_S)‖² ≤ ‖x‖² − μ_Q ‖x_S‖²,

    where μ_Q ≥ 0 is that of Q in dimension k. The sparsifier has E‖x − x_S‖² ≤ (1 − μ_S) ‖x‖², that is
    E‖x_S‖² ≥ μ_S ‖x‖², and Q's rounding is independent of S. So μ = μ_S μ_Q, with μ_S = k/d.

    >>> compressor = Composed(sparsifier=TopK(k=2), quantizer=ScaledSign())
    >>> payload = compressor.encode([3.0, -1.0, 0.0, -4.0], (7, 0, 3, 17))
    >>> payload.nbytes, compressor.decode(payload).tolist()
    (17, [3.5, 0.0, 0.0, -3.5])
    """

    kind: Literal["composed"] = "composed"
    sparsifier: Annotated[RandK | TopK, Field(discriminator="kind")]
    quantizer: Annotated[ScaledSign | QSGD, Field(discriminator="kind")]

    def check(self, dimension: int) -> None:
        """Raise ValueError where one of the two cannot do its part."""
        self.sparsifier.check(dimension)
        self.quantizer.check(self.sparsifier.count(dimension))

    def pack(self, vector: np.ndarray, address: Address) -> bytes:
        """Return the bytes of Q(x_S), then what tells S."""
        indices, values = self.sparsifier.choose(vector, address)
        return b"".join((self.quantizer.pack(values, address), self.sparsifier.pack_indices(indices, vector.size)))

    def unpack(self, data: memoryview | bytes, dimension: int, address: Address) -> np.ndarray:
        """Return Q(x_S) in its places."""
        k = self.sparsifier.count(dimension)
        whole, values = memoryview(data), self.quantizer.nbytes(k)
        vector = np.zeros(dimension)
        indices = self.sparsifier.unpack_indices(whole[values:], dimension, address)
        vector[indices] = self.quantizer.unpack(whole[:values], k, address)
        return vector

    def nbytes(self, dimension: int) -> int:
        """Return the quantizer's bytes for k numbers and those of the indices."""
        return self.quantizer.nbytes(self.sparsifier.count(dimension)) + self.sparsifier.index_bytes(dimension)

    def contraction(self, dimension: int) -> float:
        """Return μ_S μ_Q."""
        return self.sparsifier.contraction(dimension) * self.quantizer.contraction(self.sparsifier.count(dimension))

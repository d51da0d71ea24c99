"""TopK by a count sketch: the indices are found in a small linear image of the vector, the values sent exactly."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from asyncsim.compressors.base import NUMBER, Address, Sparse, floats, shared
from asyncsim.compressors.largest import largest
from asyncsim.spec import Count

_MOST = 2**32


class SketchedTopK(Sparse):
    """About the k largest coordinates: a count sketch tells which, and their values follow exactly.

    With r = `rows` and c = `columns` (4k if not given) the sketch of x is the table of

        T[j, b] = Σ_i s_j(i) x_i 1{h_j(i) = b},   j < r, b < c,

    for hash functions h_j (a column) and s_j (a sign) from shared randomness. x_i is estimated by the median over j of
    s_j(i) T[j, h_j(i)], each of which is right on average and has variance at most ‖x‖²/c. S are the k coordinates of
    largest estimate, of equal ones those of lower index, and C(x)_i = x_i for i in S, else 0. The receiver finds S
    in the sketch, so r·c numbers are sent and in a second round the k values: 8(rc + k) bytes.

    The sketch is linear. A server may therefore add the workers' sketches, find the heaviest coordinates of the sum,
    and ask every worker for these (`sketch`, `heaviest`).

    The estimates must not be sent in place of the values: on vectors whose entries are alike their error is larger
    than the vector. Exact values never have an error above ‖x‖², and k/d of it is saved on average over vectors
    whose coordinates are exchangeable; but for a given vector S may be the k smallest (d = 2, k = r = c = 1: both
    estimates are equal in size, and of x = (0, 1) the zero is sent). So the guaranteed μ is 0.

    Source: Charikar, Chen, Farach-Colton 2002, "Finding frequent items in data streams"; Ivkin et al. 2019,
    "Communication-efficient distributed SGD with sketching", for gradients and the second round.

    >>> compressor, address = SketchedTopK(k=1, columns=8), (7, 0, 3, 17)
    >>> payload = compressor.encode([0.5, 0.0, -9.0, 0.25], address)
    >>> payload.nbytes, compressor.decode(payload).tolist()
    (328, [0.0, 0.0, -9.0, 0.0])
    """

    kind: Literal["sketch"] = "sketch"
    rows: Annotated[int, Field(ge=1, le=100)] = 5
    columns: Count | None = None

    def check(self, dimension: int) -> None:
        """Raise ValueError unless 1 ≤ k ≤ d and d ≤ 2^32, as the hash functions need it."""
        self.count(dimension)
        if dimension > _MOST:
            raise ValueError(f"a sketch takes at most {_MOST} coordinates, got {dimension}")

    def shape(self, dimension: int) -> tuple[int, int]:
        """Return (rows, columns) of the sketch of a vector of this dimension."""
        return self.rows, self.columns or 4 * self.count(dimension)

    def sketch(self, vector: np.ndarray, address: Address) -> np.ndarray:
        """Return T, shape (rows, columns); the worker in the address does not matter."""
        from asyncsim.compressors.count_sketch import hash_keys, make_sketch

        table = np.zeros(self.shape(vector.size))
        make_sketch(np.ascontiguousarray(vector, dtype=np.float64), hash_keys(shared(address), self.rows), table)
        return table

    def estimates(self, sketch: np.ndarray, address: Address, dimension: int) -> np.ndarray:
        """Return the estimate of every coordinate, shape (d,), from a sketch or a sum of sketches made at a draw."""
        from asyncsim.compressors.count_sketch import estimate, hash_keys

        estimates = np.empty(dimension)
        estimate(np.ascontiguousarray(sketch), hash_keys(shared(address), self.rows), estimates)
        return estimates

    def heaviest(self, sketch: np.ndarray, address: Address, dimension: int) -> np.ndarray:
        """Return S, the indices of the k largest estimates in size, in increasing order, shape (k,)."""
        return largest(self.estimates(sketch, address, dimension), self.count(dimension))[0]

    def pack(self, vector: np.ndarray, address: Address) -> bytes:
        """Return T and x_S."""
        sketch = self.sketch(vector, address)
        values = vector[self.heaviest(sketch, address, vector.size)]
        return b"".join((sketch.astype(NUMBER, copy=False).data, values.astype(NUMBER, copy=False).data))

    def unpack(self, data: memoryview | bytes, dimension: int, address: Address) -> np.ndarray:
        """Return x_S in its places and 0 elsewhere; NaN throughout where the sketch is not finite."""
        rows, columns = self.shape(dimension)
        sketch = floats(data, rows * columns).reshape(rows, columns)
        if not np.isfinite(sketch).all():  # the entry that was not finite need not be one of the k
            return np.full(dimension, np.nan)
        vector = np.zeros(dimension)
        values = floats(data, self.count(dimension), start=8 * rows * columns)
        vector[self.heaviest(sketch, address, dimension)] = values
        return vector

    def nbytes(self, dimension: int) -> int:
        """Return 8 (rows · columns + k)."""
        rows, columns = self.shape(dimension)
        return 8 * (rows * columns + self.count(dimension))

    def contraction(self, dimension: int) -> float:
        """Return 0, or 1 where all coordinates are sent."""
        return float(self.count(dimension) == dimension)

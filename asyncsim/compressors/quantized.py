"""Quantizers: every coordinate in a few bits."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from asyncsim.compressors.base import MOST_DRAWS, NUMBER, Address, Compressor, floats


class ScaledSign(Compressor):
    """C(x) = (‖x‖₁/d) sign(x): a bit for each coordinate and one number, ⌈d/8⌉ + 8 bytes.

    A zero is sent as +1, for a bit has no third value. All entries of C(x) have size ‖x‖₁/d and the sign of x_i, so

        ‖x − C(x)‖² = ‖x‖² − 2 (‖x‖₁/d) ‖x‖₁ + d (‖x‖₁/d)² = (1 − ‖x‖₁² / (d ‖x‖₂²)) ‖x‖².

    ‖x‖₁ ≥ ‖x‖₂, with equality for a single nonzero entry: the guaranteed μ is 1/d. It is 2/π for long Gaussian vectors.

    Source: Karimireddy, Rebjock, Stich, Jaggi 2019, "Error feedback fixes SignSGD and other gradient compression
    schemes", Lemma 8 (without the rule for zeros).

    >>> payload = ScaledSign().encode([3.0, -1.0, 0.0, -4.0], (7, 0, 3, 17))
    >>> payload.nbytes, ScaledSign().decode(payload).tolist()
    (9, [2.0, -2.0, 2.0, -2.0])
    """

    kind: Literal["sign"] = "sign"

    def pack(self, vector: np.ndarray, address: Address) -> bytes:
        """Return ‖x‖₁/d and the signs."""
        sizes = np.abs(vector)
        with np.errstate(invalid="ignore", over="ignore"):
            # Taken from the smallest on, the mean of equal numbers is exact: what was decoded is encoded as it was.
            smallest = sizes.min()
            scale = smallest + (sizes - smallest).mean()
        return np.array([scale], dtype=NUMBER).tobytes() + np.packbits(vector < 0, bitorder="little").tobytes()

    def unpack(self, data: memoryview | bytes, dimension: int, address: Address) -> np.ndarray:
        """Return the scale with the signs."""
        scale = floats(data, 1)[0]
        signs = np.frombuffer(data, dtype=np.uint8, offset=8)
        return np.where(np.unpackbits(signs, count=dimension, bitorder="little"), -scale, scale)

    def nbytes(self, dimension: int) -> int:
        """Return 8 + ⌈d/8⌉."""
        return 8 + (dimension + 7) // 8

    def contraction(self, dimension: int) -> float:
        """Return 1/d."""
        return 1.0 / dimension


class QSGD(Compressor):
    """Every |x_i| rounded at random to a multiple of ‖x‖₂/s, so that it is right on average, with s = `levels`.

    With r_i = s |x_i| / ‖x‖ the coordinate becomes sign(x_i) ‖x‖ ℓ_i / s, where ℓ_i is ⌊r_i⌋ + 1 with probability
    r_i − ⌊r_i⌋ and ⌊r_i⌋ otherwise: E C(x) = x and E‖C(x) − x‖² ≤ ω‖x‖², ω = min(d/s², √d/s) (`variance`). The
    rounding is the message's own: each worker's is independent of the others'.

    C itself guarantees μ = 1 − ω where that is positive, otherwise nothing. With `scaled` it is C/(1 + ω), for which

        E‖C(x)/(1+ω) − x‖² ≤ (ω/(1+ω)² + (ω/(1+ω))²) ‖x‖² = (1 − 1/(1+ω)) ‖x‖²:   μ = 1/(1+ω).

    On the wire: ‖x‖, then sign and level of each coordinate as one of 2s + 1 values, in codes of ⌈log₂(2s + 1)⌉ bits
    (fixed, so that the bytes depend on d only; the paper's Elias codes are shorter where most levels are 0).

    What was decoded has another norm than x and other levels, so C(C(x)) is not C(x), except where all |x_i|/‖x‖ are
    multiples of 1/s, which the rounding leaves alone: zero, or a single nonzero entry.

    Source: Alistarh, Grubic, Li, Tomioka, Vojnović 2017, "QSGD", Lemma 3.1.

    >>> compressor = QSGD(levels=5)
    >>> payload = compressor.encode([3.0, 0.0, -4.0], (7, 0, 3, 17))
    >>> payload.nbytes, compressor.decode(payload).tolist()
    (10, [3.0, 0.0, -4.0])
    """

    kind: Literal["qsgd"] = "qsgd"
    levels: Annotated[int, Field(ge=1, le=2**30)]
    scaled: bool = False

    @property
    def bits(self) -> int:
        """Bits of a coordinate, ⌈log₂(2s + 1)⌉."""
        return (2 * self.levels).bit_length()

    def check(self, dimension: int) -> None:
        """Raise ValueError where an address does not hold a random number for every coordinate."""
        if dimension > MOST_DRAWS:
            raise ValueError(f"qsgd takes at most {MOST_DRAWS} coordinates, got {dimension}")

    def pack(self, vector: np.ndarray, address: Address) -> bytes:
        """Return ‖x‖ and the codes."""
        from asyncsim.compressors.codes import pack_codes
        from asyncsim.streams import ROUNDING, uniforms

        norm, shares = _norm_and_shares(vector)
        codes = np.zeros(vector.size, dtype=np.uint32)
        if 0.0 < norm < math.inf:
            exact = self.levels * shares
            level = np.floor(exact)
            level += uniforms(*address, ROUNDING, vector.size) < exact - level
            level = np.minimum(level, self.levels)  # which rounding errors alone could exceed
            codes = (np.where(vector < 0, -level, level) + self.levels).astype(np.uint32)
        packed = np.zeros((vector.size * self.bits + 7) // 8, dtype=np.uint8)
        pack_codes(codes, self.bits, packed)
        return np.array([norm], dtype=NUMBER).tobytes() + packed.tobytes()

    def unpack(self, data: memoryview | bytes, dimension: int, address: Address) -> np.ndarray:
        """Return the multiples of ‖x‖/s, over 1 + ω if `scaled`."""
        from asyncsim.compressors.codes import unpack_codes

        norm = floats(data, 1)[0]
        codes = np.empty(dimension, dtype=np.uint32)
        unpack_codes(np.frombuffer(data, dtype=np.uint8, offset=8), self.bits, codes)
        with np.errstate(invalid="ignore"):
            vector = (codes.astype(np.float64) - self.levels) / self.levels * norm
        return vector / (1.0 + self.variance(dimension)) if self.scaled else vector

    def nbytes(self, dimension: int) -> int:
        """Return 8 + ⌈d ⌈log₂(2s + 1)⌉ / 8⌉."""
        return 8 + (dimension * self.bits + 7) // 8

    def variance(self, dimension: int) -> float:
        """Return ω = min(d/s², √d/s), the bound on E‖C(x) − x‖² / ‖x‖² before scaling."""
        return min(dimension / self.levels**2, math.sqrt(dimension) / self.levels)

    def contraction(self, dimension: int) -> float:
        """Return 1/(1 + ω) if `scaled`, else max(0, 1 − ω)."""
        omega = self.variance(dimension)
        return 1.0 / (1.0 + omega) if self.scaled else max(0.0, 1.0 - omega)


def _norm_and_shares(x: np.ndarray) -> tuple[float, np.ndarray]:
    """Return ‖x‖ and |x_i|/‖x‖, computed at a scale (a power of two) at which no square over- or underflows."""
    sizes = np.abs(x)
    largest = float(sizes.max())
    if largest == 0.0 or not math.isfinite(largest):
        return largest, sizes
    exponent = math.frexp(largest)[1]
    sizes = np.ldexp(sizes, -exponent)
    norm = math.sqrt(float((sizes * sizes).sum()))
    with np.errstate(over="ignore"):
        return float(np.ldexp(norm, exponent)), sizes / norm

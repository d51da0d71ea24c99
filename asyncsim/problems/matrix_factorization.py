"""A matrix as the product of two thin ones: by least squares, and of a photograph without negative parts."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncsim.problems.base import Problem
from asyncsim.problems.data import refuse_too_large
from asyncsim.problems.pictures import BUILT_IN, Photograph, grey_values, read_matrix
from asyncsim.problems.start import SaddleStart, check_start, random_rows, starting_points
from asyncsim.spec import Count, File, refuse


class Factorization(Problem):
    """f(W, H) = (1/mn) ‖A − W H‖², the mean squared error of a factorization of an m × n matrix A at `rank` k.

    x holds the m rows of W, then the n columns of H, each k numbers long; so x, reshaped to (m + n, k), is W above Hᵀ,
    and d = k (m + n). A block of coordinates is a set of rows of W and columns of H, and needs only those of A:

        ∇_W f = (2/mn) (W (H Hᵀ) − A Hᵀ),    ∇_{Hᵀ} f = (2/mn) (Hᵀ (Wᵀ W) − Aᵀ W).

    Written with the k × k Gram matrices, of which half is computed, a gradient takes 4mnk + 3(m + n)k² floating-point
    operations, and a block of a rows of W 2ank + (n + 2a)k². Independent blocks of the whole so do no work twice but
    the Gram matrices. Through the residual W H − A it is 6mnk where both factors share it, and 4ank for the block,
    that is 8mnk for all of them. Each is done in the way that takes fewer operations: for the whole, Gram matrices up
    to k = 2mn/3(m + n). `value_and_gradient` gets the value from the same products, by Gram matrices as
    (1/mn) (‖A‖² − 2⟨A Hᵀ, W⟩ + ⟨Wᵀ W, H Hᵀ⟩), right to 1e-15 ‖A‖²/mn; `value` forms the residual, 2mnk, and is right
    where f is tiny, too. `block_value_and_gradient` has the value as cheaply wherever the block holds all of W or all
    of H.

    `block_bounds` cuts between rows so that each block has as many of the 4mnk operations: two blocks are W and H.

    A pass of coordinate descent over a block is compiled: it costs the block gradient, and k²/2 multiplications and
    additions for each row.
    """

    rank: Count

    # --- what a subclass gives -------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """m and n."""
        raise NotImplementedError

    @cached_property
    def matrix(self) -> np.ndarray:
        """A, shape (m, n)."""
        raise NotImplementedError

    # --- what follows ----------------------------------------------------------------------------------------------

    def _check_rank(self) -> None:
        if self.rank > min(self.shape):
            rows, columns = self.shape
            raise refuse(f"'rank' must be at most {min(self.shape)}, the matrix is {rows} × {columns}; got {self.rank}")

    @property
    def dimension(self) -> int:
        """d = k (m + n)."""
        return self.rank * sum(self.shape)

    @cached_property
    def _largest(self) -> float:
        """σ₁, the largest singular value of A."""
        return float(np.linalg.norm(self.matrix, 2))

    @cached_property
    def _square(self) -> float:
        """‖A‖²."""
        return float(np.square(self.matrix).sum())

    @property
    def _scale(self) -> float:
        """2/mn."""
        return 2.0 / (self.shape[0] * self.shape[1])

    @property
    def smoothness(self) -> float:
        """L = 14 σ₁/mn where ‖W‖₂ and ‖H‖₂ are at most √(2σ₁)."""
        return 7.0 * self._scale * self._largest

    @property
    def hessian_lipschitz(self) -> float:
        """ρ = 12 √σ₁/mn in the same place."""
        return 6.0 * self._scale * self._largest**0.5

    def factors(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return W, shape (…, m, k), and Hᵀ, shape (…, n, k), as views of x."""
        both = x.reshape(*x.shape[:-1], sum(self.shape), self.rank)
        return both[..., : self.shape[0], :], both[..., self.shape[0] :, :]

    def _flat(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        both = np.concatenate([left, right], axis=-2)
        return both.reshape(*both.shape[:-2], self.dimension)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(x), shape (…)."""
        left, right = self.factors(x)
        residual = left @ right.swapaxes(-1, -2) - self.matrix
        return 0.5 * self._scale * np.einsum("...ij,...ij->...", residual, residual)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return ∇f(x), shape (…, d)."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return f(x) and ∇f(x) from the same products."""
        left, right = self.factors(x)
        rows, columns = self.shape
        if 3 * (rows + columns) * self.rank > 2 * rows * columns:
            residual = left @ right.swapaxes(-1, -2) - self.matrix
            gradient = self._flat(residual @ right, residual.swapaxes(-1, -2) @ left)
            return 0.5 * self._scale * np.einsum("...ij,...ij->...", residual, residual), self._scale * gradient
        left_gram, right_gram = _gram(left), _gram(right)
        crossed = self.matrix @ right
        first, second = left @ right_gram - crossed, right @ left_gram - self.matrix.T @ left
        inner = (left_gram * right_gram).sum(axis=(-1, -2)) - 2.0 * (crossed * left).sum(axis=(-1, -2))
        value = 0.5 * self._scale * (self._square + inner)
        return value, self._scale * self._flat(first, second)

    def block_bounds(self, blocks: int) -> list[slice]:
        """Return blocks of whole rows of W and Hᵀ, of equal work as far as that goes: with two blocks, W and H."""
        rows, columns = self.shape
        # A row of W takes 2nk operations and a column of H 2mk, so W in all as many as H.
        work = np.append(columns * np.arange(rows), rows * columns + rows * np.arange(columns + 1))
        ends = np.searchsorted(work * blocks, 2 * rows * columns * np.arange(blocks + 1)) * self.rank
        if (np.diff(ends) == 0).any():  # more blocks than there are rows to share
            return super().block_bounds(blocks)
        return [slice(low, high) for low, high in pairwise(ends.tolist())]

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the coordinates `block` of ∇f(x), computed for the rows and columns that the block touches."""
        return self._block(x, block)[1]

    def block_value_and_gradient(self, x: np.ndarray, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return f(x) and the block of ∇f(x), from the same products where the block holds all of W or all of H."""
        value, gradient = self._block(x, block, valued=True)
        return self.value(x) if value is None else value, gradient

    def _block(self, x: np.ndarray, block: slice, valued: bool = False) -> tuple[Any, np.ndarray]:
        """Return the block of ∇f(x), and f(x) if it is asked for and follows from the same products."""
        x = np.asarray(x, dtype=np.float64)
        start, stop, step = block.indices(self.dimension)
        rows = range(start // self.rank, -(-stop // self.rank))
        parts = [self._rows(x, side, chosen, valued) for side, chosen in enumerate(self._sides(rows))]
        gradient = np.concatenate([part for _, part in parts], axis=-2).reshape(*x.shape[:-1], -1)
        value = next((value for value, _ in parts if value is not None), None)
        return value, gradient[..., start - rows.start * self.rank : max(stop - rows.start * self.rank, 0) : step]

    def _sides(self, rows: range) -> tuple[slice, slice]:
        """Return the rows of W and the rows of Hᵀ among rows of both."""
        split = self.shape[0]
        low, high = rows.start, max(rows.stop, rows.start)
        return slice(min(low, split), min(high, split)), slice(max(low - split, 0), max(high - split, 0))

    def _rows(
        self, x: np.ndarray, side: int, rows: slice, valued: bool = False
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Return some rows of ∇_W f (side 0) or ∇_{Hᵀ} f (side 1), and f(x) if it is asked for and these are all."""
        own, other = self.factors(x)[:: 1 - 2 * side]
        if rows.start == rows.stop:
            return None, own[..., rows, :]  # nothing
        matrix = self.matrix[rows] if side == 0 else self.matrix[:, rows].T
        count, others = matrix.shape
        own, valued, square = own[..., rows, :], valued and count == self.shape[side], None
        # In place: the arrays are large, and memory that is asked for anew takes longer than the arithmetic.
        if (others + 2 * count) * self.rank > 2 * count * others:
            residual = own @ other.swapaxes(-1, -2)
            residual -= matrix
            slope = residual @ other
            if valued:
                square = _inner(residual, residual)
        else:
            crossed, slope = matrix @ other, own @ _gram(other)
            slope -= crossed
            if valued:  # ‖A − W H‖² = ‖A‖² − ⟨W, 2 A Hᵀ − W H Hᵀ⟩
                crossed -= slope
                square = self._square - _inner(own, crossed)
        slope *= self._scale
        return None if square is None else 0.5 * self._scale * square, slope

    def sweep(self, x: np.ndarray, block: slice, step: float) -> np.ndarray:
        """Return the coordinates `block` of x after one pass of coordinate descent over them, shape (…, block).

        The rows of W do not feel each other, nor do those of Hᵀ. In a row, moving coordinate a by δ adds
        δ G_ab 2/mn to the slope of coordinate b, G being the other factor's Gram matrix.
        """
        start, stop, stride = block.indices(self.dimension)
        if stride != 1 or stop <= start:
            return super().sweep(x, block, step)
        from asyncsim.problems.compiled_sweep import move_rows

        x = np.array(x, dtype=np.float64)
        for side, rows in enumerate(self._sides(range(start // self.rank, -(-stop // self.rank)))):
            if rows.start < rows.stop:
                own, other = self.factors(x)[:: 1 - 2 * side]
                before = self.rank * (rows.start + side * self.shape[0])
                size = self.rank * (rows.stop - rows.start)
                # Copies, laid out without gaps, so that the compiler makes several numbers at once.
                moved, slopes, bends = (
                    np.ascontiguousarray(array).reshape(-1, *array.shape[-2:])
                    for array in (own[..., rows, :], self._rows(x, side, rows)[1], self._scale * _gram(other))
                )
                move_rows(moved, slopes, bends, max(start - before, 0), min(stop - before, size), step)
                own[..., rows, :] = moved.reshape(own[..., rows, :].shape)
        return x[..., block]

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f(x) v, shape (…, d)."""
        (left, right), (left_move, right_move) = self.factors(x), self.factors(vector)
        halves = []
        for own, other, own_move, other_move, matrix in (
            (left, right, left_move, right_move, self.matrix),
            (right, left, right_move, left_move, self.matrix.T),
        ):
            crossed = other_move.swapaxes(-1, -2) @ other
            change = own_move @ _gram(other) + own @ (crossed + crossed.swapaxes(-1, -2)) - matrix @ other_move
            halves.append(self._scale * change)
        return self._flat(*halves)


def _gram(factor: np.ndarray) -> np.ndarray:
    """Return VᵀV."""
    return factor.swapaxes(-1, -2) @ factor


def _inner(first: np.ndarray, second: np.ndarray) -> Any:
    """Return the sum of all products of entries, one for each replica."""
    return np.vdot(first, second) if first.ndim == 2 else np.einsum("...ij,...ij->...", first, second)


class MatrixFactorization(Factorization):
    """f(W, H) = (1/mn) ‖A − W H‖² for a matrix A from a `file` (.npy or .csv), or m × n with standard normal entries.

    Give `rows` = m and `columns` = n, and A is addressed by `data_seed`; or give `file`. W is m × k, H is k × n,
    k = `rank`; x holds the rows of W and then the columns of H. The gradient is the derivative of f. (Some use averages
    of the entries' derivatives instead, which are m times the derivative by W and n times that by H.)

    With the singular values σ₁ ≥ σ₂ ≥ … of A, f* = Σ_{i>k} σᵢ²/mn (Eckart and Young 1936), reached at the balanced
    factors of A's best approximation, `minimizer`, among others. 0 is a strict saddle with least eigenvalue −2σ₁/mn.
    There is no global L; where ‖W‖₂, ‖H‖₂ ≤ R = √(2σ₁),

        L = (2/mn) (3R² + σ₁) = 14σ₁/mn,    ρ = (2/mn) 3√2 R = 12√σ₁/mn,

    for along a unit direction the residual is W H − A + tE₁ + t²E₂ with ‖W H − A‖₂ ≤ R² + σ₁, ‖E₁‖² ≤ 2R²,
    ‖E₂‖ ≤ ½, and the second and third derivatives are (2/mn) (‖E₁‖² + 2⟨W H − A, E₂⟩) and (2/mn) 6⟨E₁, E₂⟩.

    Runs begin at `start`: "random", the default, is N(0, σ) in every entry by address, with σ² the mean square of A
    over k, so that W H is as large as A; "saddle" is 0 exactly; or numbers.

    >>> problem = MatrixFactorization(rows=10, columns=10, rank=2)
    >>> problem.dimension
    40
    >>> bool(np.isclose(problem.value(problem.minimizer), problem.minimum))
    True
    """

    kind: Literal["matrix_factorization"] = "matrix_factorization"
    rows: Count | None = None
    columns: Count | None = None
    file: File | None = None
    data_seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    start: SaddleStart = "random"

    @model_validator(mode="after")
    def _one_source(self) -> MatrixFactorization:
        made_up = self.rows is not None and self.columns is not None
        if made_up == (self.file is not None) or (self.file and (self.rows or self.columns)):
            raise refuse("give either 'file', or 'rows' and 'columns'")
        if made_up:
            refuse_too_large(*self.shape)
        elif self.data_seed:
            raise refuse("'data_seed' has no effect with 'file': leave it out")
        self._check_rank()
        check_start(self.start, self.dimension)
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """m and n."""
        if self.rows is not None and self.columns is not None:
            return self.rows, self.columns
        return self.matrix.shape[0], self.matrix.shape[1]

    @cached_property
    def matrix(self) -> np.ndarray:
        """A, shape (m, n)."""
        if self.file is not None:
            return read_matrix(self.file)
        from asyncsim import streams

        return streams.normals(self.data_seed, 0, -1, np.arange(self.shape[0]), streams.DATA, self.shape[1])

    @cached_property
    def _singular(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        left, values, right = np.linalg.svd(self.matrix, full_matrices=False)
        return left, values, right

    @cached_property
    def minimizer(self) -> np.ndarray:
        """The balanced factors of A's best approximation of rank k; one of many."""
        left, values, right = (part[..., : self.rank] for part in (*self._singular[:2], self._singular[2].T))
        return self._flat(left * np.sqrt(values), right * np.sqrt(values))

    @property
    def minimum(self) -> float:
        """f* = Σ_{i>k} σᵢ²/mn."""
        return float(0.5 * self._scale * np.square(self._singular[1][self.rank :]).sum())

    @property
    def strict_saddle(self) -> tuple[np.ndarray, float]:
        """0, with least eigenvalue −2σ₁/mn."""
        return np.zeros(self.dimension), -self._scale * self._largest

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return `start` for each replica, shape (…, d)."""
        spread = (0.5 * self._scale * self._square / self.rank) ** 0.25
        if self.start == "random":
            return spread * _all_rows(self, seed, replica)
        return starting_points(self.start, self.dimension, spread, seed, replica)


class NonNegativeFactorization(Factorization):
    """f(W, H) = (1/mn) ‖A − W H‖² for a photograph A, to be factored with W ≥ 0 and H ≥ 0.

    `photograph` is "china" or "flower", which scikit-learn carries (427 × 640), or a file that holds a picture; A has
    its grey values, from 0 to 1. The constraint is the method's: give it ``projection = { set = "non_negative" }``.
    W is m × k, H is k × n, k = `rank`; x holds the rows of W and then the columns of H. Where ‖W‖₂, ‖H‖₂ ≤ √(2σ₁), σ₁
    being the largest singular value of A, L = 14σ₁/mn and ρ = 12√σ₁/mn, as for `MatrixFactorization`.

    Runs begin at |N(0, 1)| · √(mean of A / k) in every entry, by address.

    >>> problem = NonNegativeFactorization(photograph="china", rank=6)
    >>> problem.dimension == 6 * (427 + 640)
    True
    """

    kind: Literal["nmf"] = "nmf"
    photograph: Photograph

    @model_validator(mode="after")
    def _check(self) -> NonNegativeFactorization:
        self._check_rank()
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """The photograph's height and width."""
        if self.photograph in BUILT_IN:
            return BUILT_IN[self.photograph]
        return self.matrix.shape[0], self.matrix.shape[1]

    @cached_property
    def matrix(self) -> np.ndarray:
        """The grey values, from 0 to 1, shape (m, n)."""
        return grey_values(self.photograph)

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return the starting point of each replica, shape (…, d); no entry is negative."""
        return np.abs(_all_rows(self, seed, replica)) * (self.matrix.mean() / self.rank) ** 0.5


def _all_rows(problem: Factorization, seed: int, replica: Any) -> np.ndarray:
    rows = random_rows(problem.rank, sum(problem.shape), seed, replica)
    return rows.reshape(*rows.shape[:-2], problem.dimension)

"""What every problem offers: an objective, its gradients, and what is known about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from asyncsim.blocks import block_bounds
from asyncsim.completed import Completed
from asyncsim.spec import Spec
from asyncsim.trace import Row


class Problem(Spec):
    """An objective f on R^d.

    Every function broadcasts over leading axes: `x` has shape (…, d), a value has shape (…), a gradient (…, d). The
    replicas of a run are such a leading axis. A problem of your own that takes one model at a time, shape (d,), says
    ``batched = False``; one that does not derive from this class is taken to be so unless it says ``batched = True``.
    """

    batched: ClassVar[bool] = True

    if TYPE_CHECKING:
        # Not there at run time, so that a problem may have a field of this name.
        @property
        def dimension(self) -> int:
            """Number d of coordinates."""

    @property
    def smoothness(self) -> float | None:
        """L, the Lipschitz constant of the gradient; None where unknown or infinite."""
        return None

    @property
    def hessian_lipschitz(self) -> float | None:
        """ρ, the Lipschitz constant of the Hessian; None where unknown or infinite."""
        return None

    @property
    def strict_saddle(self) -> tuple[np.ndarray, float] | None:
        """A point where ∇f = 0 and the least eigenvalue of ∇²f, negative there; None where none is known."""
        return None

    @property
    def strong_convexity(self) -> float | None:
        """μ, the strong convexity constant; None where unknown."""
        return None

    @property
    def minimizer(self) -> np.ndarray | None:
        """x*, shape (d,), one of them where there are several; None where unknown."""
        return None

    @property
    def minimum(self) -> float | None:
        """f*, the smallest value; None where unknown."""
        return None

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return the starting point of each replica, shape (…, d); zero unless the problem says otherwise."""
        return np.zeros((*np.shape(replica), self.dimension))

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(x), shape (…)."""
        raise NotImplementedError

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return ∇f(x), shape (…, d)."""
        raise NotImplementedError

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return an unbiased estimate of ∇f(x), its randomness addressed by `row`; the gradient itself by default."""
        return self.gradient(x)

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the coordinates `block` of ∇f(x)."""
        return self.gradient(x)[..., block]

    def block_bounds(self, blocks: int) -> list[slice]:
        """Return the coordinates of each of `blocks` blocks that several workers are to share: equally many, or even.

        A problem whose coordinates take unequal work cuts them so that the blocks' gradients take as much.
        """
        return block_bounds(self.dimension, blocks)

    def block_value_and_gradient(self, x: np.ndarray, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return f(x) and the coordinates `block` of ∇f(x), which are `block_gradient`'s to the bit.

        A problem in which they share work does it once.
        """
        return self.value(x), self.block_gradient(x, block)

    def value_and_gradient(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return f(x) and ∇f(x); a problem in which they share work does it once."""
        return self.value(x), self.gradient(x)

    def sweep(self, x: np.ndarray, block: slice, step: float) -> np.ndarray:
        """Return the coordinates `block` of x after one pass of coordinate descent over them, shape (…, block).

        The coordinates of the block move one after another, xᵢ ← xᵢ − step · ∂ᵢf(x), each seeing the new values of
        those before it (Gauss and Seidel); the coordinates outside stay, and so does the array x. This is the slow
        definition, one block gradient per coordinate; problems where a pass costs less say how.
        """
        x = np.array(x, dtype=np.float64)
        for index in range(*block.indices(self.dimension)):
            one = slice(index, index + 1)
            x[..., one] -= step * self.block_gradient(x, one)
        return x[..., block]

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f(x) v, shape (…, d)."""
        raise NotImplementedError

    def accuracy(self, x: np.ndarray) -> np.ndarray:
        """Return the share of data classified rightly, for classification problems."""
        raise NotImplementedError


def complete(own: Any) -> Any:
    """Return a problem with every function: a user's object that leaves some out gets the defaults of `Problem`.

    >>> class Bowl:
    ...     dimension = 2
    ...     def value(self, x): return 0.5 * (x**2).sum(axis=-1)
    ...     def gradient(self, x): return x
    >>> complete(Bowl()).initial(0, 0)
    array([0., 0.])
    """
    return own if isinstance(own, Problem) else Completed(own, Problem, "problem")

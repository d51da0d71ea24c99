"""Step rules: how far a gradient moves the model, given the update's index and the gradient's staleness.

A rule is a small frozen object. `start` returns what it remembers at version 0; `steps` turns the rows of one update
and that memory into one step per row and the memory afterwards. Memories are values: they are replaced, never changed.
With replicas as a batch every step is an array with one number per replica, since each replica has its own staleness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np

from asyncsim.trace import Row

#: Names of the rules, as a scenario file spells them; `STEP_RULES` holds the classes.
StepRuleName = Literal[
    "constant", "inverse_sqrt", "inverse_time", "staleness", "concurrency", "adaptive_1", "adaptive_2"
]


@dataclass(frozen=True)
class StepRule:
    """A rule with the scale `step` > 0. One that looks at single gradients only has to give `of`."""

    step: float

    def start(self, workers: int, replicas: tuple[int, ...]) -> Any:
        """Return the memory at version 0: None, or what the rule needs of the `workers` and the batch's shape."""
        return None

    def of(self, row: Row, memory: Any) -> Any:
        """Return the step of one gradient, a number or one per replica."""
        raise NotImplementedError

    def steps(self, rows: list[Row], memory: Any) -> tuple[list[Any], Any]:
        """Return one step per gradient of an update, and the memory after it."""
        return [self.of(row, memory) for row in rows], memory


class Constant(StepRule):
    """The same step always: γ = step."""

    def of(self, row: Row, memory: Any) -> Any:
        """Return step."""
        return self.step


class InverseSqrt(StepRule):
    """γ_t = step / √(t+1), with t the index of the update: the usual choice for convex losses."""

    def of(self, row: Row, memory: Any) -> Any:
        """Return step / √(t+1)."""
        return self.step / np.sqrt(row.update + 1.0)


class InverseTime(StepRule):
    """γ_t = step / (t+1), with t the index of the update.

    For μ-strongly convex losses take step = 1/μ, which gives 1/(μ(t+1)).
    """

    def of(self, row: Row, memory: Any) -> Any:
        """Return step / (t+1)."""
        return self.step / (row.update + 1.0)


class Staleness(StepRule):
    """γ = step / (τ+1), with τ the staleness of the gradient."""

    def of(self, row: Row, memory: Any) -> Any:
        """Return step / (τ+1)."""
        return self.step / (row.staleness + 1.0)


class Concurrency(StepRule):
    """γ = step · min(1, M / max(τ, 1)), with τ the gradient's staleness and M the number of workers.

    M workers keep M gradients in flight, so the mean staleness is about M whatever their speeds. The rule therefore
    leaves most gradients alone and shortens only the steps of stragglers; with step = 1/(4LM) it is
    min(1/(4LM), 1/(4Lτ)), for a gradient with Lipschitz constant L.

    Source: Mishchenko, Bach, Even, Woodworth 2022, "Asynchronous SGD beats minibatch SGD under arbitrary delays". The
    form is the above; the constants of the paper's theorems were not compared.

    >>> rows = [Row(seed=7, replica=0, worker=0, draw=0, staleness=staleness) for staleness in (0, 3, 40)]
    >>> [float(step) for step in Concurrency(step=1.0).steps(rows, memory=4)[0]]
    [1.0, 1.0, 0.1]
    """

    def start(self, workers: int, replicas: tuple[int, ...]) -> Any:
        """Remember M."""
        return workers

    def of(self, row: Row, memory: Any) -> Any:
        """Return step · min(1, M / max(τ, 1))."""
        return self.step * np.minimum(1.0, memory / np.maximum(row.staleness, 1.0))


class DelayAdaptive(StepRule):
    """A rule that never lets the steps taken since the model was read exceed γ' = `step`.

    With γ_k the step of update k and τ_k the staleness of its gradient, the principle is

        0 ≤ γ_k ≤ max(0, γ' − W_k),   W_k = Σ_{t=k−τ_k}^{k−1} γ_t,   and Σ_k γ_k = ∞,

    where W_k sums the steps that were applied, not those that a formula without the bound would have given, and starts
    at update 0 where τ_k > k. For a gradient with Lipschitz constant L take γ' = h/L with 0 < h < 1 (for updates of a
    block of coordinates L is that of the block). An update made of several gradients takes one step, from the
    largest of their staleness.

    Memory: W as it would be for every version that a gradient may still have been read at, shape
    (versions, replicas …), the newest version last. Versions since which every replica has moved by γ' or more are
    dropped except for one, which stands for all of them: a gradient that old gets no step either way. So the memory
    is as long as it takes the steps to add up to γ', not as the run.

    Source: Wu, Magnússon, Feyzmahdavian, Johansson, "Delay-adaptive step-sizes for asynchronous learning", ICML 2022
    (arXiv 2202.08550). What was checked: principle and rules were derived without the paper's text, from the
    principle as stated above, so neither was compared with the paper's equations; tests hold the principle at every
    k, the steps at constant staleness, and the divergence of Σγ_k below. What was not: the paper's convergence rates
    and constants, and its theorems are about proximal incremental and block methods without momentum or sampling noise.
    """

    def start(self, workers: int, replicas: tuple[int, ...]) -> Any:
        """Remember that nothing was applied since version 0."""
        return np.zeros((1, *replicas))

    def choose(self, left: Any, staleness: Any) -> Any:
        """Return γ_k from what the principle leaves, max(0, γ' − W_k), and τ_k."""
        raise NotImplementedError

    def steps(self, rows: list[Row], memory: Any) -> tuple[list[Any], Any]:
        """Return γ_k for every row, and W after it for the versions still to be told apart."""
        staleness = reduce(np.maximum, [row.staleness for row in rows])
        place = np.maximum(len(memory) - 1 - staleness, 0)
        applied = memory[place] if memory.ndim == 1 else memory[place, np.arange(memory.shape[1])]
        step = self.choose(np.maximum(self.step - applied, 0.0), staleness)
        after = np.concatenate([memory + step, np.zeros_like(memory[:1])])
        outlived = after >= self.step  # true for a number of oldest versions, since W falls with the version
        count = np.count_nonzero(outlived if after.ndim == 1 else outlived.all(axis=1))
        return [step] * len(rows), after[max(int(count) - 1, 0) :]


@dataclass(frozen=True)
class Adaptive1(DelayAdaptive):
    """γ_k = α max(0, γ' − W_k), with γ' = `step` and α = `alpha` in (0, 1); W_k as in `DelayAdaptive`.

    At constant staleness τ it settles at αγ'/(1+ατ), the fixed point of γ = α(γ' − τγ). Where τ_k ≤ τ, W_k is at most
    the sum of the τ steps before k, so any τ+1 consecutive steps add up to αγ' or more and Σγ_k diverges.
    """

    alpha: float = 0.9

    def choose(self, left: Any, staleness: Any) -> Any:
        """Return α times what is left."""
        return self.alpha * left


class Adaptive2(DelayAdaptive):
    """γ_k = γ'/(τ_k+1) if that is at most γ' − W_k, else 0, with γ' = `step`; W_k as in `DelayAdaptive`.

    At constant staleness τ it is γ'/(τ+1). Where τ_k ≤ τ, a step is refused only when those of the last τ updates
    exceed γ'τ_k/(τ_k+1), so any τ+1 consecutive steps add up to γ'/(τ+1) or more and Σγ_k diverges.

    >>> rule, taken = Adaptive2(step=1.0), []
    >>> memory = rule.start(workers=2, replicas=())
    >>> for staleness in (0, 1, 1, 1):
    ...     (step,), memory = rule.steps([Row(seed=7, replica=0, worker=0, draw=0, staleness=staleness)], memory)
    ...     taken.append(float(step))
    >>> taken
    [1.0, 0.0, 0.5, 0.5]
    """

    def choose(self, left: Any, staleness: Any) -> Any:
        """Return γ'/(τ+1) where there is room for it."""
        wanted = self.step / (staleness + 1.0)
        # Constant staleness meets the bound with equality at every update, which rounding must not turn into refusal.
        return np.where(wanted <= left + 1e-9 * self.step, np.minimum(wanted, left), 0.0)[()]


#: Every step rule by the name that a scenario file uses.
STEP_RULES: dict[StepRuleName, Callable[..., StepRule]] = {
    "constant": Constant,
    "inverse_sqrt": InverseSqrt,
    "inverse_time": InverseTime,
    "staleness": Staleness,
    "concurrency": Concurrency,
    "adaptive_1": Adaptive1,
    "adaptive_2": Adaptive2,
}

"""SEACD: asynchronous coordinate descent that leaves saddle points, made of three parts.

SWACD is one worker's pass over its block of coordinates; GACD is a stretch of such updates whose energy must fall; PACD
is a perturbation and the updates that show whether it helped. Here each part is a step of one state machine, driven by
whatever delivers messages; `asyncsim.methods.serial` has them as the plain loops that they are without asynchrony.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from asyncsim.methods.base import Method, State
from asyncsim.methods.perturbation import in_ball
from asyncsim.methods.projections import AnyProjection, Ball, Simplex
from asyncsim.problems.base import Problem
from asyncsim.spec import Positive, refuse
from asyncsim.theory.escape import EscapeParameters, escape_parameters
from asyncsim.trace import Row

#: f of models of shape (replicas, d).
Values = Callable[[np.ndarray], np.ndarray]

#: What the method is doing: descending, seeing whether a perturbation helped, or nothing any more.
DESCENT, ESCAPE, DONE = range(3)


class Phase(NamedTuple):
    """What the server keeps beside the model x, each with the replicas' axis in front if there is one.

    `workers` is M. `kind` is what is being done and `taken` how many block updates of it were; `since` is the version
    at which the history began: gradients of versions before it are not used. `lengths` has ‖Δ‖² of the last τ updates,
    the newest last; `energy` is that at the phase's beginning. `before` is the point before the last perturbation.
    `anchor` is the point at the phase's beginning and `point` the sequence that is extrapolated, both None without
    momentum; `plain` says that this phase goes without.
    """

    workers: int
    kind: Any
    taken: Any
    since: Any
    lengths: np.ndarray
    energy: Any
    before: np.ndarray
    perturbations: Any
    late: Any
    anchor: np.ndarray | None = None
    point: np.ndarray | None = None
    plain: Any = False

    def of(self, place: Any) -> Phase:
        """Return the phase of one or some replicas of a batch; None makes a batch of a single one."""
        return self.with_fields(None if field is None else np.asarray(field)[place] for field in self[1:])

    def with_fields(self, fields: Iterable[Any]) -> Phase:
        """Return a phase of the same workers with other fields, in order."""
        return Phase._make((self.workers, *fields))


class Part(NamedTuple):
    """Replicas of a batch whose gradients are of the same block: their places, and what they sent, shape (…, block)."""

    block: int
    places: np.ndarray
    payload: np.ndarray


def swacd(problem: Problem, x: np.ndarray, block: slice, step: float, sweep: str) -> np.ndarray:
    """Return what a worker sends for its block of the version x that it read, shape (…, block).

    That is the block's gradient, or with "gauss_seidel" how far a pass over its coordinates, each seeing those before
    it, has moved them.
    """
    if sweep == "jacobi":
        return problem.block_gradient(x, block)
    return problem.sweep(x, block, step) - x[..., block]


def squared_length(x: np.ndarray) -> np.ndarray:
    """Return ‖x‖², in one pass over x and without BLAS, whose threads would change the bits."""
    return np.asarray(np.einsum("...i,...i->...", x, x))


class SEACD(Method):
    """Saddle-escaping asynchronous coordinate descent.

    The problem cuts its coordinates into `blocks` contiguous ones of even work. A worker computes from the version x̂
    that it read the gradient of its block b, and the server moves that block alone (SWACD), P being the `projection`
    and η the step:

        x_b ← P(x_b − η ∇_b f(x̂)),   or with `sweep` = "gauss_seidel"   x_b ← P(x_b + s),

    s the way that the worker's pass over the coordinates of x̂_b went. Its block is the trace's `block`; where that has
    none, the block of worker w is w mod blocks, and with fewer workers M than blocks that of its draw k is
    (w + M k) mod blocks. Where an update has several gradients of a block, it moves by their mean.

    The energy E is that of `asyncsim.theory.escape`, with a = `energy_a`. GACD makes n = `descent` block updates, fewer
    if one of them is as long as M. Where E has not fallen by F, the model is perturbed by noise uniform in the ball of
    radius ηr, and T block updates follow (PACD). If by then E has fallen by F below f at the point before, the saddle
    is left and GACD goes on; otherwise the model returns to the point before, and the method asks to stop.

    A perturbation and a return happen inside the update that ends a phase. The history of steps, and with it the
    energy, begins anew at a perturbation and after a PACD that helped, for the delays of a phase may not reach back
    before it. `phase_boundary` says what becomes of the gradients under way there: with "barrier" the workers are asked
    to finish, and are all sent the new model; with "continue" such a gradient arrives, makes an update that leaves the
    model as it is, and counts for nothing. A gradient staler than `delay_bound` within a phase is used, and counted.

    Parameters
    ----------
    step_rule, step, energy_a
        "safe": η below 2/(L(1 + τ(a + 1/a))), .9 of it if `step` is left out, and a = 1. "report": η below 1/(2L√τ) and
        a = √τ, as the algorithm's author has it; the energy need not fall then.
    delay_bound
        τ ≥ 1, the staleness that is to be reckoned with.
    epsilon, delta
        The accuracy asked for, ‖∇f‖ ≤ ε and λ_min ≥ −√(ρε), and the probability of not leaving a strict saddle.
    blocks, window
        Number of blocks, and B_w, the number of updates within which each is updated (`blocks` if left out).
    descent, radius, escape_time, decrease, large_step
        n, r, T, F and M by hand; n is max(τ, B_w), the others are by the theorem (`theory.escape_parameters`). f is
        evaluated at the end of each GACD: n by hand says how often, and then no single step ends one unless M is
        given too. With momentum none does.
    smoothness, hessian_lipschitz
        L and ρ, where the problem's own are not known or not the ones wanted.
    momentum
        Accelerated SEACD, with β = `momentum` in [0, 1): in GACD the server keeps the moved block as y_b and publishes
        P(y_b + β(y_b − y_b of before)). Where E has not fallen by F, the phase is undone, and done again without
        momentum, so that E over whole phases falls as it does without; PACD goes without.

    Source: Bornstein 2021, "Escaping from saddle points using asynchronous coordinate descent", Algorithms 1 and 3-5.
    Other than printed: the radius is the theorem's ηr, not r; T counts windows, not updates; F and M, there undefined,
    are `theory.escape_parameters`'s; what is returned at last is the point before the perturbation, as its text says;
    n is no smaller than B_w, so that every block has its say. Momentum is ours.
    """

    kind: Literal["seacd"] = "seacd"
    step_rule: Literal["safe", "report"] = "safe"
    step: Positive | None = None
    delay_bound: Annotated[int, Field(ge=1, le=100_000)]
    epsilon: Positive
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.01
    blocks: Annotated[int, Field(ge=1, le=100_000)] = 1
    phase_boundary: Literal["continue", "barrier"] = "continue"
    energy_a: Positive | None = None
    sweep: Literal["jacobi", "gauss_seidel"] = "jacobi"
    projection: AnyProjection | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    window: Annotated[int, Field(ge=1)] | None = None
    descent: Annotated[int, Field(ge=1)] | None = None
    radius: Positive | None = None
    escape_time: Annotated[int, Field(ge=1)] | None = None
    decrease: Positive | None = None
    large_step: Positive | None = None
    smoothness: Positive | None = None
    hessian_lipschitz: Positive | None = None

    #: Every gradient is that of the whole objective, of which a worker with a share of the data knows only a part.
    takes_whole_gradients: ClassVar[bool] = True
    makes_requests: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = ("energy", "perturbations")

    @property
    def asks_for_barriers(self) -> bool:
        """Whether workers are held at phase ends."""
        return self.phase_boundary == "barrier"

    @model_validator(mode="after")
    def _block_by_block(self) -> SEACD:
        if self.blocks > 1 and isinstance(self.projection, Ball | Simplex):
            raise refuse(
                "must be a set of each coordinate on its own (box, non_negative) where there are several blocks",
                "projection",
            )
        return self

    def parameters(self, problem: Problem) -> EscapeParameters:
        """Return η, r, T, F, M and what is uncertain about them; raise ValueError with the inequality that fails."""
        return self._for(problem)[1]

    def bounds(self, problem: Problem) -> list[slice]:
        """Return the coordinates of each block, as the problem cuts them."""
        return self._for(problem)[2]

    def _for(self, problem: Problem) -> tuple[Problem, EscapeParameters, list[slice]]:
        """Return what does not change while the problem is the same one."""
        known = self.__dict__.get("_known")  # as a cached property is kept: no part of the value
        if known is None or known[0] is not problem:
            known = self.__dict__["_known"] = problem, self._parameters(problem), problem.block_bounds(self.blocks)
        return known

    def _parameters(self, problem: Any) -> EscapeParameters:
        smoothness = problem.smoothness if self.smoothness is None else self.smoothness
        if smoothness is None:
            raise ValueError("the problem does not know its smoothness L: give 'smoothness'")
        rho = self.hessian_lipschitz
        rho = getattr(problem, "hessian_lipschitz", None) if rho is None else rho
        if self.escape_time is None and not rho:
            said = "not known" if rho is None else "0"
            raise ValueError(
                f"rho, the Hessian's Lipschitz constant, is {said}: give 'hessian_lipschitz' or 'escape_time'"
            )
        return escape_parameters(
            dimension=problem.dimension,
            epsilon=self.epsilon,
            delta=self.delta,
            delay_bound=self.delay_bound,
            smoothness=smoothness,
            hessian_lipschitz=rho,
            window=self.window or self.blocks,
            step_rule=self.step_rule,
            step=self.step,
            energy_a=self.energy_a,
            radius=self.radius,
            escape_time=self.escape_time,
            decrease=self.decrease,
            large_step=self.large_step,
        )

    def check(self, problem: Problem, workers: int) -> None:
        """Raise ValueError where problem, workers and parameters do not go together."""
        if self.blocks > problem.dimension:
            raise ValueError(f"blocks <= dimension fails: {self.blocks} against {problem.dimension}")
        self.parameters(problem)

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the state at version 0, at the beginning of a GACD; what workers keep is their number M."""
        self.check(problem, workers)
        shape = x0.shape[:-1]
        accelerated = self.momentum > 0.0
        phase = Phase(
            workers=workers,
            kind=np.full(shape, DESCENT),
            taken=np.zeros(shape, dtype=np.int64),
            since=np.zeros(shape, dtype=np.int64),
            lengths=np.zeros((*shape, self.delay_bound)),
            energy=np.asarray(problem.value(x0)),
            before=x0,
            perturbations=np.zeros(shape, dtype=np.int64),
            late=np.zeros(shape, dtype=np.int64),
            anchor=x0 if accelerated else None,
            point=x0 if accelerated else None,
            plain=np.zeros(shape, dtype=bool),
        )
        return State(x0, phase), [workers] * workers

    # --- at the worker ------------------------------------------------------------------------------------------------

    def block_of(self, row: Row, workers: int) -> Any:
        """Return the block of a gradient; an array where replicas run as a batch."""
        own = row.worker if workers >= self.blocks else row.worker + workers * row.draw
        return np.where(np.asarray(row.block) >= 0, row.block, own % self.blocks)[()]

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return the block's gradient, or its pass, at the version read: SWACD."""
        bounds = self.bounds(problem)
        step = 0.0 if self.sweep == "jacobi" else self.parameters(problem).step
        block = self.block_of(row, memory)
        if x_read.ndim == 1:
            return swacd(problem, x_read, bounds[int(block)], step, self.sweep), memory
        block = np.broadcast_to(block, x_read.shape[:1])
        parts = []
        for one in np.unique(block).tolist():
            places = np.flatnonzero(block == one)
            x = x_read if places.size == len(x_read) else x_read[places]
            parts.append(Part(one, places, swacd(problem, x, bounds[one], step, self.sweep)))
        return parts, memory

    # --- at the server ------------------------------------------------------------------------------------------------

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after one update: the blocks moved, and a phase ended if it is at its end."""
        if state.x.ndim == 1:
            return self._apply_one(problem, state, payloads, rows)
        if len(rows) == 1:
            return self._apply_batch(problem, state, payloads[0], rows[0])
        return self._apply_each(problem, state, payloads, rows)

    def _move(self, old: np.ndarray, payload: np.ndarray, step: float) -> np.ndarray:
        moved = old - step * payload if self.sweep == "jacobi" else old + payload
        return moved if self.projection is None else self.projection(moved)

    def _apply_one(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        phase: Phase = state.extra
        if phase.kind == DONE:
            return state._replace(request="stop")
        by_block: dict[int, list[np.ndarray]] = {}
        late = phase.late
        for payload, row in zip(payloads, rows, strict=True):
            if row.update - row.staleness >= phase.since:
                by_block.setdefault(int(self.block_of(row, phase.workers)), []).append(payload)
                late = late + (row.staleness > self.delay_bound)
        if not by_block:
            return state._replace(request="go")
        step, bounds = self.parameters(problem).step, self.bounds(problem)
        x, point, squared = state.x.copy(), phase.point, 0.0
        if point is not None:
            point = point.copy()
        for block, sent in by_block.items():
            where = bounds[block]
            payload = sent[0] if len(sent) == 1 else sum(sent[1:], sent[0]) / len(sent)
            moved = self._move(x[where], payload, step)
            if point is not None:
                plain = phase.plain | (phase.kind == ESCAPE)
                point[where], moved = moved, self._extrapolated(moved, point[where], plain)
            squared += float(squared_length(moved - x[where]))
            x[where] = moved
        phase = phase._replace(
            taken=phase.taken + 1, late=late, point=point, lengths=np.append(phase.lengths[1:], squared)
        )
        if not self._is_over(problem, phase.kind, phase.taken, squared):
            return State(x, phase)
        alone = rows[0]._replace(replica=np.array([rows[0].replica]))
        x, phase, void = self._end_phase(
            problem, x[None], lambda points: np.array([problem.value(points[0])]), phase.of(None), alone
        )
        request = "stop" if phase.kind[0] == DONE else "barrier" if void and self.phase_boundary == "barrier" else "go"
        return State(x[0], phase.of(0), request)

    def _extrapolated(self, moved: np.ndarray, before: np.ndarray, plain: Any) -> np.ndarray:
        beta = np.where(plain, 0.0, self.momentum)
        moved = moved + (beta if moved.ndim == 1 else beta[:, None]) * (moved - before)
        return moved if self.projection is None else self.projection(moved)

    def _apply_batch(self, problem: Problem, state: State, parts: list[Part], row: Row) -> State:
        phase: Phase = state.extra
        step, bounds = self.parameters(problem).step, self.bounds(problem)
        used = (row.update - row.staleness >= phase.since) & (phase.kind != DONE)
        x, point, squared = state.x.copy(), phase.point, np.zeros(len(state.x))
        if point is not None:
            point = point.copy()
        for block, places, payload in parts:
            of = slice(None) if places.size == len(x) else places
            old, use = x[of, bounds[block]], used[of]
            moved = self._move(old, payload, step)
            if point is not None:
                before = point[of, bounds[block]]
                kept = moved if use.all() else np.where(use[:, None], moved, before)
                moved = self._extrapolated(moved, before, phase.plain[of] | (phase.kind[of] == ESCAPE))
                point[of, bounds[block]] = kept
            if not use.all():
                moved = np.where(use[:, None], moved, old)
            squared[of] = squared_length(moved - old)
            x[of, bounds[block]] = moved
        lengths = np.concatenate([phase.lengths[:, 1:], squared[:, None]], axis=1)
        phase = phase._replace(
            taken=phase.taken + used,
            late=phase.late + (used & (row.staleness > self.delay_bound)),
            lengths=lengths if used.all() else np.where(used[:, None], lengths, phase.lengths),
            point=point,
        )
        over = np.flatnonzero(used & self._is_over(problem, phase.kind, phase.taken, squared))
        if over.size:
            some = Row(row.seed, np.asarray(row.replica)[over], -1, -1, row.update)
            x[over], after, _ = self._end_phase(problem, x[over], problem.value, phase.of(over), some)
            phase = phase.with_fields(
                None if field is None else _replaced(field, over, value)
                for field, value in zip(phase[1:], after[1:], strict=True)
            )
        return State(x, phase, "stop" if (phase.kind == DONE).all() else "go")

    def _apply_each(self, problem: Problem, state: State, payloads: list[list[Part]], rows: list[Row]) -> State:
        """Apply an update of several gradients, replica by replica."""
        sent = [
            {place: value for part in parts for place, value in zip(part.places.tolist(), part.payload, strict=True)}
            for parts in payloads
        ]
        after = []
        for place, x in enumerate(state.x):
            mine = [Row(row.seed, *(_at(getattr(row, name), place) for name in Row._fields[1:])) for row in rows]
            one = State(x, state.extra.of(place))
            after.append(self._apply_one(problem, one, [values[place] for values in sent], mine))
        fields = zip(*(one.extra[1:] for one in after), strict=True)
        phase = state.extra.with_fields(None if field[0] is None else np.array(field) for field in fields)
        return State(np.array([one.x for one in after]), phase, "stop" if (phase.kind == DONE).all() else "go")

    # --- phases -------------------------------------------------------------------------------------------------------

    def _is_over(self, problem: Problem, kind: Any, taken: Any, squared: Any) -> Any:
        """Say whether an update, of squared length `squared`, was its phase's last."""
        known = self.parameters(problem)
        long = squared >= self.long_enough(known)
        long = long | (taken >= (self.descent or max(self.delay_bound, self.window or self.blocks)))
        return ((kind == DESCENT) & long) | ((kind == ESCAPE) & (taken >= known.escape_time))

    def long_enough(self, known: EscapeParameters) -> float:
        """Return M², the squared length of a step that ends a GACD; infinite where n is by hand and M is not."""
        by_hand = self.descent is not None and self.large_step is None
        return math.inf if by_hand or self.momentum > 0.0 else known.large_step * known.large_step

    def energy(self, problem: Problem, loss: Any, lengths: np.ndarray) -> Any:
        """Return f(x) + c Σ k ‖Δ‖², f(x) = `loss`, k = 1 … τ from the oldest of the last τ steps to the newest."""
        weights = np.arange(1.0, self.delay_bound + 1.0)
        return loss + self.parameters(problem).energy_weight * (lengths * weights).sum(axis=-1)

    def _end_phase(
        self, problem: Problem, x: np.ndarray, value: Values, phase: Phase, row: Any
    ) -> tuple[np.ndarray, Phase, bool]:
        """Return the models and phases that follow the last update of a phase, and whether what is under way is void.

        `x` has shape (replicas, d), and `value` returns f of such models.
        """
        known = self.parameters(problem)
        loss = value(x)
        energy = self.energy(problem, loss, phase.lengths)
        fell = energy - phase.energy <= -known.decrease
        descends = phase.kind == DESCENT
        fails = descends & ~fell
        undone = fails & ~phase.plain if phase.anchor is not None else np.zeros_like(fails)
        perturbed, left, done = fails & ~undone, ~descends & fell, ~descends & ~fell
        anew = ~(descends & fell)
        before = np.where(perturbed[:, None], x, phase.before)
        energy = np.where(anew, np.where(done, phase.energy, loss), energy)
        if undone.any():
            assert phase.anchor is not None
            x = np.where(undone[:, None], phase.anchor, x)
            energy = np.where(undone, value(x), energy)
        if perturbed.any():
            which = np.flatnonzero(perturbed)
            moved = x[which] + in_ball(row, x.shape[1], known.step * known.radius, which)
            x = np.array(x)
            x[which] = moved if self.projection is None else self.projection(moved)
        x = np.where(done[:, None], phase.before, x)
        phase = phase._replace(
            kind=np.where(perturbed, ESCAPE, np.where(done, DONE, np.where(left, DESCENT, phase.kind))),
            taken=np.zeros_like(phase.taken),
            since=np.where(anew, row.update + 1, phase.since),
            lengths=np.where(anew[:, None], 0.0, phase.lengths),
            energy=energy,
            before=before,
            perturbations=phase.perturbations + perturbed,
            anchor=None if phase.anchor is None else x,
            point=None if phase.point is None else np.where(anew[:, None], x, phase.point),
            plain=undone,
        )
        return x, phase, bool((anew & ~done).any())

    # --- what is told about a run -------------------------------------------------------------------------------------

    def measure(self, problem: Problem, state: State, name: str) -> np.ndarray:
        """Return the energy, or how often the model was perturbed, of each replica."""
        if name == "energy":
            return np.asarray(self.energy(problem, problem.value(state.x), state.extra.lengths))
        return np.asarray(state.extra.perturbations)

    def facts(self, problem: Problem, state: State) -> dict[str, np.ndarray]:
        """Return how many perturbations and late gradients each replica had, and whether it came to its own end."""
        phase: Phase = state.extra
        return {"perturbations": phase.perturbations, "late": phase.late, "finished": phase.kind == DONE}


def _replaced(field: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a copy with these entries replaced."""
    copy = np.array(field)
    copy[places] = values
    return copy


def _at(field: Any, place: int) -> Any:
    return field[place] if np.ndim(field) else field

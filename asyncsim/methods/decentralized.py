"""Decentralised SGD: every worker is a node with a model of its own, and averages with its neighbours in a graph."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from asyncsim.compressors import AnyCompressor
from asyncsim.methods.base import BYTES_PER_NUMBER, Method, State
from asyncsim.mixing import ROUNDING, Graph, checked, mean_degree, metropolis, read_matrix, spectral_gap
from asyncsim.problems.base import Problem
from asyncsim.spec import Floats, NonNegative, Positive, existing_file, refuse, shown
from asyncsim.trace import Row


def _mixing(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, list | tuple) or value == "metropolis":
        return value
    if isinstance(value, str) and value.endswith((".npy", ".csv")):
        return existing_file(value, info)
    raise refuse(f'must be "metropolis", a matrix as a list of rows, or a .npy or .csv file, got {shown(value)}')


#: "metropolis", a matrix, or the file that holds one.
Mixing = Annotated[str | Annotated[tuple[Floats, ...], Field(strict=False)], BeforeValidator(_mixing)]


class Gossip(NamedTuple):
    """What depends on the number of nodes: W, and γ."""

    matrix: np.ndarray
    step: float


class DecentralizedSGD(Method):
    """Stochastic gradient descent by gossip: no server, M nodes with models x_1 … x_M, one worker at each.

    A worker computes its gradient g_i at its own node's model. W is the mixing matrix, η the step. An update that has
    one gradient of every node, such as each of the policy "sync", is a round: all nodes take their steps, then average,

        x_i ← Σ_j W_ij (x_j − η g_j).

    Any other update takes its gradients one after another, in order of arrival, each on its own: node w, whose gradient
    may be stale, takes its step, x_w ← x_w − η g_w, then exchanges models with its neighbours j as they are by now,

        x_w ← x_w + Σ_j S_wj (x_j − x_w),   x_j ← x_j + S_wj (x_w − x_j) for each j,   S = (W + Wᵀ)/2,

    with the old x_w and x_j on the right. That is one multiplication by a doubly stochastic matrix as well, so whatever
    the policy averaging leaves the mean x̄ of the nodes alone, and an update moves it by −(η/M) Σ g over its gradients.

    A version of the model is all nodes together, shape (M d,), node after node. What is measured on it, such as the
    loss, is measured on x̄; the metric `consensus` is √((1/M) Σ_i ‖x_i − x̄‖²). All nodes begin at the problem's start.
    On a complete graph W = 11ᵀ/M, all nodes are equal after every round, and this is plain synchronous SGD.

    With a `compressor` C nodes do not send models. Node i and its neighbours all keep the same public copy x̂_i of its
    model. After its step node i sends q_i = C(x_i − x̂_i), all add q_i to x̂_i, and with γ the `consensus_step`

        x_i ← x_i + γ Σ_j W_ij (x̂_j − x̂_i)

    is the average, in a round for all nodes at once (CHOCO-SGD), and otherwise, which is ours, as above: node w alone
    sends, and it and its neighbours move by γ S_wj times the differences of public copies. The copies begin at the
    problem's start, which all nodes know. The mean is left alone here too.

    With `noise` σ the gradient is computed at x_w + σξ in place of x_w, ξ ~ N(0, I), anew for each gradient; x_w itself
    stays as it is. Where the gradient is affine in x, as for linear least squares, the mean over ξ of every iterate is
    what it is without noise (its loss is not: that rises by the spread); elsewhere both move.

    Parameters
    ----------
    step
        η.
    graph
        Who is whose neighbour: ``{ topology = "ring" }``, or `arguments`, or `edges`, on the nodes 0 … M − 1. May be
        left out where `mixing` is a matrix.
    mixing
        "metropolis" weights of the graph, or W itself, as a list of rows or in a .npy or .csv file.
    noise
        σ, 0 for none; unit of the coordinates.
    compressor, consensus_step
        C, for which W must be symmetric, and γ in (0, 1]. Left out, with δ the spectral gap of W, β = ‖I − W‖₂ and ω
        the contraction of C, E‖C(v) − v‖² ≤ (1 − ω)‖v‖², it is γ = δ²ω/(16δ + δ² + 4β² + 2δβ² − 8δω), for which models
        and public copies are sure to come together (CHOCO's Theorem 2); larger ones may be faster. A C without a
        guarantee, ω = 0, needs a γ.

    Sources: Lian et al. 2017, "Can decentralized algorithms outperform centralized algorithms?" (D-PSGD), which takes
    the step after the average, x_i ← Σ_j W_ij x_j − ηg_i, so that the two may overlap; x̄ moves alike, and the other
    order is that of the later papers. Lian et al. 2018, "Asynchronous decentralized parallel SGD", allows any doubly
    stochastic matrix per update; its own has one random neighbour, at weight ½. Koloskova, Stich, Jaggi 2019,
    "Decentralized stochastic optimization and gossip algorithms with compressed communication", Algorithm 2; the γ of
    its Theorem 2 was not compared with the text, tests hold the contraction by 1 − δ²ω/82 a round that goes with it.
    Noise on the weights during decentralised training: Adilova, Paul, Schlicht 2018; we read its abstract alone, so
    where in a step the noise belongs is our choice.

    >>> from asyncsim.problems import Quadratic
    >>> method, problem = DecentralizedSGD(step=0.5, graph=Graph(topology="path")), Quadratic(eigenvalues=[1.0])
    >>> state, _ = method.init(problem, np.array([0.0]), workers=3)
    >>> rows = [Row(seed=7, replica=0, worker=worker, draw=0, update=0) for worker in range(3)]
    >>> gradients = [np.array([-2.0]), np.array([0.0]), np.array([0.0])]
    >>> method.apply(problem, state, gradients, rows).x.round(3).tolist()  # a step of 1 at one end
    [0.667, 0.333, 0.0]
    """

    kind: Literal["decentralized_sgd"] = "decentralized_sgd"
    step: Positive
    graph: Graph | None = None
    mixing: Mixing = "metropolis"
    noise: NonNegative = 0.0
    compressor: AnyCompressor | None = None
    consensus_step: Annotated[float, Field(gt=0, le=1)] | None = None
    measures: ClassVar[tuple[str, ...]] = ("consensus",)

    @model_validator(mode="after")
    def _complete(self) -> DecentralizedSGD:
        if self.graph is None and self.mixing == "metropolis":
            raise refuse("metropolis weights need 'graph', such as { topology = \"ring\" }")
        if self.consensus_step is not None and self.compressor is None:
            raise refuse("belongs to a compressor; models that are sent whole are averaged in full", "consensus_step")
        return self

    @property
    def batched(self) -> bool:  # type: ignore[override]
        """Whether replicas run as a batch: a compressor takes one vector at a time."""
        return self.compressor is None

    def gossip(self, problem: Problem, workers: int) -> Gossip:
        """Return W and γ for M = `workers` nodes; raise ValueError where graph, matrix and M do not go together."""
        known = self.__dict__.get("_known")  # as a cached property is kept: no part of the value
        if known is None or known[0] != (workers, problem.dimension):
            matrix = self._matrix(workers)
            known = self.__dict__["_known"] = (workers, problem.dimension), Gossip(matrix, self._step(problem, matrix))
        return known[1]

    def _matrix(self, workers: int) -> np.ndarray:
        graph = None if self.graph is None else self.graph.of(workers)
        if self.mixing == "metropolis":
            return metropolis(graph)
        matrix = checked(read_matrix(self.mixing) if isinstance(self.mixing, str) else self.mixing, workers, graph)
        if self.compressor is not None and not np.allclose(matrix, matrix.T, rtol=0.0, atol=ROUNDING):
            raise ValueError("'mixing' must be symmetric where a compressor is used")
        return matrix

    def _step(self, problem: Problem, matrix: np.ndarray) -> float:
        """Return γ: 1 where models are sent whole, else `consensus_step` or, without one, the theorem's."""
        if self.compressor is None or self.consensus_step is not None:
            return self.consensus_step or 1.0
        gap, omega = spectral_gap(matrix), self.compressor.contraction(problem.dimension)
        if omega == 0.0:  # the theorem's step would be 0, and nobody would ever move towards anybody
            name = type(self.compressor).__name__
            raise ValueError(f"'consensus_step' must be given: {name} guarantees no μ > 0 to choose it by")
        squared = float(1.0 - np.linalg.eigvalsh(matrix)[0]) ** 2
        below = 16.0 * gap + gap**2 + 4.0 * squared + 2.0 * gap * squared - 8.0 * gap * omega
        return float(gap**2 * omega / below)

    def check(self, problem: Problem, workers: int) -> None:
        """Raise ValueError where graph, matrix or compressor do not fit nodes and problem, or leave nodes apart."""
        if self.compressor is not None:
            self.compressor.check(problem.dimension)
        self.gossip(problem, workers)

    def size(self, problem: Problem, workers: int) -> int:
        """Return M d: a version is all nodes' models."""
        return workers * problem.dimension

    def model(self, problem: Problem, x: np.ndarray) -> np.ndarray:
        """Return the mean of the nodes' models, shape (…, d)."""
        return _nodes(problem, x).mean(axis=-2)

    def message_bytes(self, problem: Problem, workers: int) -> tuple[int, int]:
        """Return what a node sends to its neighbours and what it gets from them for one gradient, in bytes.

        Both are the mean number of neighbours times a model's 8 d bytes, or what the compressor makes of it: so the
        bytes of a round add up exactly, while a node of more neighbours than others really sends more than that.
        """
        whole = BYTES_PER_NUMBER * problem.dimension
        one = whole if self.compressor is None else self.compressor.nbytes(problem.dimension)
        both = round(mean_degree(self.gossip(problem, workers).matrix) * one)
        return both, both

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the state at version 0, every node and every public copy at x0; workers keep nothing."""
        self.check(problem, workers)
        x = np.tile(x0, workers)
        return State(x, None if self.compressor is None else x), [None] * workers

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return the gradient at the worker's own node, or with noise beside it."""
        nodes = _nodes(problem, x_read)
        own = nodes[_of(nodes, row.worker)]
        if self.noise > 0.0:
            from asyncsim import streams

            address = row.seed, row.replica, row.worker, row.draw
            own = own + self.noise * streams.normals(*address, streams.PERTURBATION, problem.dimension)
        return problem.stochastic_gradient(own, row), memory

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after a round, or after each gradient's own step and exchange in turn."""
        nodes = _nodes(problem, state.x)
        workers = nodes.shape[-2]
        public = None if state.extra is None else _nodes(problem, state.extra)
        senders = np.stack([np.broadcast_to(row.worker, nodes.shape[:-2]) for row in rows], axis=-1)
        is_round = len(rows) == workers and (np.sort(senders, axis=-1) == np.arange(workers)).all(axis=-1)
        if np.all(is_round):
            after, public = self._round(problem, nodes, public, payloads, rows)
        elif not np.any(is_round):
            after, public = self._one_by_one(problem, nodes, public, payloads, rows)
        else:  # some replicas of a batch
            all_at_once = self._round(problem, nodes, public, payloads, rows)[0]
            in_turn = self._one_by_one(problem, nodes, public, payloads, rows)[0]
            after = np.where(is_round[:, None, None], all_at_once, in_turn)
        return State(after.reshape(state.x.shape), None if public is None else public.reshape(state.x.shape))

    def _round(
        self, problem: Problem, nodes: np.ndarray, public: np.ndarray | None, payloads: list[Any], rows: list[Row]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return models and public copies after all nodes have stepped and averaged."""
        matrix, gamma = self.gossip(problem, nodes.shape[-2])
        moved = nodes.copy()
        for gradient, row in zip(payloads, rows, strict=True):
            moved[_of(nodes, row.worker)] -= self.step * gradient
        if public is None:
            return matrix @ moved, None
        public = public.copy()
        for row in rows:
            public[row.worker] += self._sent(moved, public, row)
        return moved + gamma * (matrix @ public - public), public

    def _one_by_one(
        self, problem: Problem, nodes: np.ndarray, public: np.ndarray | None, payloads: list[Any], rows: list[Row]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return models and public copies after each gradient's node has stepped and exchanged with its neighbours."""
        matrix, gamma = self.gossip(problem, nodes.shape[-2])
        for gradient, row in zip(payloads, rows, strict=True):
            here = _of(nodes, row.worker)
            weights = 0.5 * gamma * (matrix[row.worker] + matrix.T[row.worker])
            moved = nodes.copy()
            moved[here] -= self.step * gradient
            if public is not None:
                public = public.copy()
                public[here] += self._sent(moved, public, row)
            known = moved if public is None else public
            towards = weights[..., None] * (known[here][..., None, :] - known)
            nodes = moved + towards
            nodes[here] -= towards.sum(axis=-2)
        return nodes, public

    def _sent(self, moved: np.ndarray, public: np.ndarray, row: Row) -> np.ndarray:
        """Return q, what everybody adds to the public copy of the row's node."""
        assert self.compressor is not None
        address = row.seed, row.replica, row.worker, row.draw
        return self.compressor.decode(self.compressor.encode(moved[row.worker] - public[row.worker], address))

    def measure(self, problem: Problem, state: State, name: str) -> np.ndarray:
        """Return the root mean square distance of the nodes from their mean."""
        nodes = _nodes(problem, state.x)
        away = nodes - nodes.mean(axis=-2, keepdims=True)
        return np.sqrt(np.square(away).sum(axis=-1).mean(axis=-1))

    def facts(self, problem: Problem, state: State) -> dict[str, np.ndarray]:
        """Return the spectral gap of W, and γ where messages are compressed."""
        nodes = _nodes(problem, state.x)
        workers, replicas = nodes.shape[-2], nodes.shape[:-2]
        matrix, gamma = self.gossip(problem, workers)
        found = {"spectral_gap": np.full(replicas, spectral_gap(matrix))}
        if self.compressor is not None:
            found["consensus_step"] = np.full(replicas, gamma)
        return found


def _nodes(problem: Problem, x: np.ndarray) -> np.ndarray:
    """Return a version as its nodes' models, shape (…, M, d)."""
    return x.reshape(*x.shape[:-1], -1, problem.dimension)


def _of(nodes: np.ndarray, worker: Any) -> Any:
    """Return the index of a worker's own node; of each replica's worker in a batch."""
    return worker if nodes.ndim == 2 else (np.arange(len(nodes)), worker)

"""Mixing: whom each node of a graph averages with, with what weight, and how fast that brings all of them together.

A mixing matrix W is doubly stochastic: W_ij ≥ 0 is the weight that node i gives to what node j sends, rows and columns
sum to 1. So averaging, x_i ← Σ_j W_ij x_j, keeps the mean of the nodes, and the distance to it falls by the factor
1 − `spectral_gap` a round, or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from asyncsim.network import Network, Node
from asyncsim.spec import Spec, refuse

#: Matrices are held whole; the eigenvalues of a larger one would be waited for.
MOST_NODES = 2_000

#: How far the sums of a matrix's rows and columns may be from 1, and a weight below 0.
ROUNDING = 1e-9

#: A gap below this cannot be told from none.
SMALLEST_GAP = 1e-12


class Graph(Spec):
    """Which nodes are neighbours.

    Parameters
    ----------
    topology
        star, ring, path, tree (binary), torus, complete, or the name of a networkx generator, called with `arguments`.
    edges
        The pairs of neighbours themselves, nodes being numbered 0, 1, …, instead of a topology.
    """

    topology: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    edges: Annotated[tuple[Annotated[tuple[int, int], Field(strict=False)], ...] | None, Field(strict=False)] = None

    @model_validator(mode="after")
    def _one_shape(self) -> Graph:
        if (self.edges is None) == (self.topology is None):
            raise refuse("give either 'topology' or 'edges'")
        if self.edges is not None and self.arguments:
            raise refuse("'arguments' go with 'topology'")
        return self

    def of(self, nodes: int) -> Any:
        """Return the networkx graph of the nodes 0 … nodes − 1, each pair of neighbours joined by one edge.

        Raises ValueError where the graph has not this many nodes or is disconnected.

        >>> sorted(Graph(topology="ring").of(4).edges)
        [(0, 1), (0, 3), (1, 2), (2, 3)]
        """
        import networkx as nx

        if nodes > MOST_NODES:
            raise ValueError(f"a mixing matrix has at most {MOST_NODES:,} nodes, got {nodes:,}")
        if self.edges is None:  # a network's graph has one node more, the server's
            graph = Network(topology=self.topology, arguments=self.arguments).graph(nodes - 1)
        else:
            graph = nx.Graph(list(self.edges))
            strange = sorted(set(graph) - set(range(nodes)))
            if strange:
                raise ValueError(f"'graph.edges' names node {strange[0]}; nodes are the workers, 0 … {nodes - 1}")
            graph.add_nodes_from(range(nodes))
        graph.remove_edges_from(list(nx.selfloop_edges(graph)))
        if len(graph) != nodes:
            raise ValueError(f"'graph' has {len(graph)} nodes, and there are {nodes} workers: each is one node")
        lonely = _cut_off(graph)
        if lonely is not None:
            raise ValueError(f"'graph' is disconnected: there is no way from node 0 to node {lonely}")
        return graph


def _cut_off(graph: Any) -> Node | None:
    """Return the first node that cannot be reached from node 0, if there is one."""
    import networkx as nx

    reached = nx.node_connected_component(graph, 0)
    return next((node for node in sorted(graph) if node not in reached), None)


def metropolis(graph: Any) -> np.ndarray:
    """Return the Metropolis weights of a networkx graph with nodes 0 … n − 1, shape (n, n).

    With d_i the number of neighbours of node i, not counting itself,

        W_ij = 1/(1 + max(d_i, d_j)) for neighbours i ≠ j,   W_ii = 1 − Σ_{j≠i} W_ij,   0 for all other pairs.

    W is symmetric, and every W_ii is positive: the neighbours' weights are at most 1/(1 + d_i) each. Node i has to know
    its neighbours' degrees and no more.

    Source: Xiao, Boyd, Lall 2005, "A scheme for robust distributed sensor fusion based on average consensus".

    >>> import networkx as nx
    >>> metropolis(nx.path_graph(3)).round(3).tolist()
    [[0.667, 0.333, 0.0], [0.333, 0.333, 0.333], [0.0, 0.333, 0.667]]
    """
    matrix = np.zeros((len(graph), len(graph)))
    for i, j in graph.edges:
        matrix[i, j] = matrix[j, i] = 1.0 / (1.0 + max(graph.degree[i], graph.degree[j]))
    np.fill_diagonal(matrix, 1.0 - matrix.sum(axis=1))
    return matrix


def read_matrix(path: str) -> np.ndarray:
    """Return the matrix in a .npy file, or in a .csv file with a row a line; raise ValueError where there is none."""
    try:
        if path.endswith(".npy"):
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
        return np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float64)
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise ValueError(f"'mixing': no matrix of numbers in {path}: {error}") from error


def checked(given: np.ndarray | Sequence[Sequence[float]], nodes: int, graph: Any = None) -> np.ndarray:
    """Return a mixing matrix as an array, having seen that it is one for this many nodes.

    It must be square, finite, not negative and doubly stochastic, all up to `ROUNDING`, give weight to neighbours in
    `graph` only, if one is given, and have a spectral gap. It need not be symmetric.

    Raises ValueError with one sentence that says what is wrong, and where.

    >>> checked([[0.5, 0.5], [0.5, 0.5]], nodes=2).shape
    (2, 2)
    """
    if len({len(row) for row in given if np.ndim(row)}) > 1:
        raise ValueError("'mixing' must be square, its rows have different lengths")
    matrix = np.array(given, dtype=np.float64)
    if matrix.shape != (nodes, nodes):
        shape = " × ".join(map(str, matrix.shape))
        raise ValueError(f"'mixing' must be {nodes} × {nodes}, a row and a column for each worker; it is {shape}")
    if nodes > MOST_NODES:
        raise ValueError(f"'mixing' has at most {MOST_NODES:,} nodes, got {nodes:,}")
    bad = np.argwhere(~(np.isfinite(matrix) & (matrix >= -ROUNDING)))
    if bad.size:
        i, j = bad[0]
        raise ValueError(f"'mixing' must not be negative or infinite; row {i}, column {j} is {matrix[i, j]:.6g}")
    for axis, line in ((1, "row"), (0, "column")):
        sums = matrix.sum(axis=axis)
        worst = int(np.abs(sums - 1.0).argmax())
        if abs(sums[worst] - 1.0) > ROUNDING:
            said = "'mixing' must be doubly stochastic, every row and every column summing to 1"
            raise ValueError(f"{said}; {line} {worst} sums to {sums[worst]:.10g}")
    if graph is not None:
        neighbours = np.eye(nodes, dtype=bool)
        for i, j in graph.edges:
            neighbours[i, j] = neighbours[j, i] = True
        outside = np.argwhere((np.abs(matrix) > ROUNDING) & ~neighbours)
        if outside.size:
            i, j = outside[0]
            raise ValueError(
                f"'mixing' gives weight {matrix[i, j]:.6g} to nodes {i} and {j}, which are no neighbours in 'graph'"
            )
    _connects(matrix)
    return matrix


def _connects(matrix: np.ndarray) -> None:
    """Refuse a matrix that leaves nodes apart."""
    import networkx as nx

    lonely = _cut_off(nx.from_numpy_array((np.abs(matrix) + np.abs(matrix.T)) > ROUNDING))
    if lonely is not None:
        raise ValueError(f"'mixing' is disconnected: nothing that node 0 sends ever comes to node {lonely}")
    if spectral_gap(matrix) < SMALLEST_GAP:
        raise ValueError("'mixing' has spectral gap 0: a round of it may leave the nodes as far apart as they were")


def spectral_gap(matrix: np.ndarray) -> float:
    """Return 1 − σ, with σ = ‖W − 11ᵀ/n‖₂ for a doubly stochastic W of n nodes.

    σ is the second largest singular value of W; for a symmetric W, which this takes the eigenvalues of, the second
    largest |λ|. A round of averaging, X ← WX, brings nodes closer, ‖WX − 1x̄ᵀ‖ ≤ σ ‖X − 1x̄ᵀ‖ with x̄ the mean, and for
    some X not closer than that. (For a W that is not symmetric, rounds in a row may do better than σ each.)

    With Metropolis weights the gap is (2/3)(1 − cos 2π/n) on a ring of n ≥ 3 nodes, (2/5)(1 − cos 2π/k) on a torus of
    k × k, k ≥ 3, 1/n on a star and 1 on a complete graph.

    >>> import math, networkx as nx
    >>> math.isclose(spectral_gap(metropolis(nx.cycle_graph(16))), 2 / 3 * (1 - math.cos(math.pi / 8)))
    True
    """
    if len(matrix) == 1:
        return 1.0
    if np.array_equal(matrix, matrix.T):
        sizes = np.sort(np.abs(np.linalg.eigvalsh(matrix)))
    else:
        sizes = np.sort(np.linalg.svd(matrix, compute_uv=False))
    return float(1.0 - sizes[-2])


def mean_degree(matrix: np.ndarray) -> float:
    """Return how many others a node sends to in a round, on average: W_ji > 0 for j ≠ i.

    >>> import networkx as nx
    >>> mean_degree(metropolis(nx.star_graph(4)))  # four nodes with one neighbour, and one with four
    1.6
    """
    others = np.abs(matrix) > ROUNDING
    return float((others.sum() - others.diagonal().sum()) / len(matrix))

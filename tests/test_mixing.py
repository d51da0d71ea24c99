"""Mixing matrices: their weights and spectral gaps, known and found otherwise, and what is refused."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from pydantic import ValidationError

from asyncsim.mixing import MOST_NODES, Graph, checked, mean_degree, metropolis, read_matrix, spectral_gap

#: Spectral gaps of Metropolis weights that are known in closed form.
KNOWN = {
    "ring of 16": (Graph(topology="ring"), 16, 2 / 3 * (1 - math.cos(2 * math.pi / 16))),
    "ring of 3": (Graph(topology="ring"), 3, 1.0),
    "ring of 101": (Graph(topology="ring"), 101, 2 / 3 * (1 - math.cos(2 * math.pi / 101))),
    "torus of 3": (Graph(topology="torus"), 9, 2 / 5 * (1 - math.cos(2 * math.pi / 3))),
    "torus of 5": (Graph(topology="torus"), 25, 2 / 5 * (1 - math.cos(2 * math.pi / 5))),
    "star of 8": (Graph(topology="star"), 8, 1 / 8),
    "star of 30": (Graph(topology="star"), 30, 1 / 30),
    "complete of 7": (Graph(topology="complete"), 7, 1.0),
    "pair": (Graph(edges=[(0, 1)]), 2, 1.0),
    "one node": (Graph(topology="complete"), 1, 1.0),
}

#: Further graphs, all connected.
GRAPHS = {
    **{name: graph.of(nodes) for name, (graph, nodes, _) in KNOWN.items()},
    "tree": Graph(topology="tree").of(11),
    "expander": Graph(topology="random_regular_graph", arguments={"d": 3, "n": 16}).of(16),
    "edges": Graph(edges=[(0, 3), (3, 1), (1, 2), (1, 3)]).of(4),
    "lollipop": Graph(topology="lollipop_graph", arguments={"m": 5, "n": 4}).of(9),
}

DIRECTED = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 0.0, 0.5]])


@pytest.mark.parametrize("name", KNOWN)
def test_gaps_that_are_known(name):
    graph, nodes, gap = KNOWN[name]
    assert spectral_gap(metropolis(graph.of(nodes))) == pytest.approx(gap, rel=1e-10)


@pytest.mark.parametrize("name", GRAPHS)
def test_metropolis_weights_are_those_of_the_definition(name):
    graph = GRAPHS[name]
    matrix, nodes = metropolis(graph), sorted(graph)
    for i in nodes:
        others = {j: 1 / (1 + max(graph.degree[i], graph.degree[j])) for j in graph.neighbors(i)}
        expected = [others.get(j, 0.0) if j != i else 1 - math.fsum(others.values()) for j in nodes]
        np.testing.assert_allclose(matrix[i], expected, atol=1e-15)
    checked(matrix, len(graph), graph)
    assert (matrix.diagonal() > 0).all()
    assert mean_degree(matrix) == pytest.approx(2 * graph.number_of_edges() / len(graph))


@pytest.mark.parametrize(
    "matrix", [*(metropolis(graph) for graph in GRAPHS.values()), DIRECTED], ids=[*GRAPHS, "directed"]
)
def test_no_round_of_averaging_contracts_less_than_the_gap_says(matrix):
    """σ is the largest of ‖W v‖/‖v‖ over v of mean 0, found by power iteration on WᵀW without any eigenvalue."""
    factor = 1 - spectral_gap(matrix)
    vectors = np.random.default_rng(2).normal(size=(len(matrix), 50))
    vectors -= vectors.mean(axis=0)
    ratio = np.zeros(1)
    for _ in range(3000 if len(matrix) > 1 else 0):
        after = matrix @ vectors
        ratio = np.linalg.norm(after, axis=0) / np.maximum(np.linalg.norm(vectors, axis=0), 1e-300)
        assert (ratio <= factor + 1e-9).all() or np.linalg.norm(vectors) < 1e-9
        vectors = matrix.T @ after
        vectors -= vectors.mean(axis=0)
        if np.linalg.norm(vectors) < 1e-9:
            break
        vectors /= np.linalg.norm(vectors, axis=0)
    assert ratio.max() == pytest.approx(factor, abs=1e-6)


def test_eigenvalues_overstate_the_gap_of_a_matrix_that_is_not_normal():
    matrix = checked([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]], 3)
    by_eigenvalues = 1 - np.sort(np.abs(np.linalg.eigvals(matrix)))[-2]
    assert by_eigenvalues > spectral_gap(matrix) + 0.05
    away = np.linalg.svd(matrix - 1 / 3)[2][0]  # what a round contracts least
    assert np.linalg.norm(matrix @ away) > 1 - by_eigenvalues + 0.05


def test_a_matrix_comes_from_a_file(tmp_path):
    matrix = metropolis(GRAPHS["torus of 3"])
    np.save(tmp_path / "w.npy", matrix)
    np.savetxt(tmp_path / "w.csv", matrix, delimiter=",", fmt="%.17g")
    for name in ("w.npy", "w.csv"):
        np.testing.assert_array_equal(checked(read_matrix(str(tmp_path / name)), 9, GRAPHS["torus of 3"]), matrix)


UNREADABLE = {"w.csv": b"0.5,half\n0.5,0.5\n", "ragged.csv": b"0.5,0.5\n1\n", "w.npy": b"no array", "empty.npy": b""}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_without_a_matrix_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(UNREADABLE[name])
    with pytest.raises(ValueError, match=f"'mixing': no matrix of numbers in .*{name}"):
        read_matrix(str(tmp_path / name))


THIRDS = np.full((3, 3), 1 / 3)
RING = Graph(topology="ring").of(4)

BAD_MATRICES = {
    "rows of different lengths": ([[0.5, 0.5], [1.0]], 2, None, "must be square, its rows have different lengths"),
    "not square": (np.ones((2, 3)) / 2, 2, None, "must be 2 × 2.*it is 2 × 3"),
    "other size": (THIRDS, 4, None, "must be 4 × 4.*it is 3 × 3"),
    "a row": ([1.0], 1, None, "must be 1 × 1"),
    "negative": ([[1.1, -0.1], [-0.1, 1.1]], 2, None, r"must not be negative.*row 0, column 1 is -0.1"),
    "not finite": ([[math.nan, 1.0], [1.0, 0.0]], 2, None, "row 0, column 0 is nan"),
    "rows": ([[0.5, 0.5], [0.5, 0.4]], 2, None, "doubly stochastic.*row 1 sums to 0.9"),
    "columns": ([[0.9, 0.1], [0.8, 0.2]], 2, None, "doubly stochastic.*column 0 sums to 1.7"),
    "almost": (THIRDS + np.diag([1e-8, 0.0, 0.0]), 3, None, "row 0 sums to 1.00000001"),
    "outside the graph": (np.full((4, 4), 0.25), 4, RING, "weight 0.25 to nodes 0 and 2, which are no neighbours"),
    "two halves": (np.kron(np.eye(2), np.full((2, 2), 0.5)), 4, None, "disconnected: .*node 0.*node 2"),
    "identity": (np.eye(3), 3, None, "disconnected"),
    "identity on a graph": (np.eye(4), 4, RING, "disconnected"),
    "swap": ([[0.0, 1.0], [1.0, 0.0]], 2, None, "spectral gap 0"),
    "cycle": (np.roll(np.eye(5), 1, axis=0), 5, None, "spectral gap 0"),
}


@pytest.mark.parametrize("name", BAD_MATRICES)
def test_what_is_no_mixing_matrix_is_refused(name):
    matrix, nodes, graph, said = BAD_MATRICES[name]
    with pytest.raises(ValueError, match="'mixing' .*" + said):
        checked(matrix, nodes, graph)


BAD_GRAPHS = {
    "disconnected": (Graph(edges=[(0, 1), (2, 3)]), 4, "'graph' is disconnected: .*node 0 to node 2"),
    "too few edges": (Graph(edges=[(0, 1)]), 3, "'graph' is disconnected: .*node 0 to node 2"),
    "stranger": (Graph(edges=[(0, 1), (1, 7)]), 3, r"'graph.edges' names node 7; nodes are the workers, 0 … 2"),
    "torus of 10": (Graph(topology="torus"), 10, "'graph' has 16 nodes, and there are 10 workers"),
    "other size": (Graph(topology="cycle_graph", arguments={"n": 5}), 6, "'graph' has 5 nodes, and there are 6"),
    "too many": (Graph(topology="ring"), MOST_NODES + 1, f"at most {MOST_NODES:,} nodes"),
    "unknown": (Graph(topology="rin"), 4, "unknown topology 'rin' .did you mean 'ring'"),
    "wrong argument": (Graph(topology="cycle_graph", arguments={"m": 5}), 5, "does not take these arguments"),
    "random, in pieces": (Graph(topology="gnp_random_graph", arguments={"n": 9, "p": 0.0}), 9, "disconnected"),
}


@pytest.mark.parametrize("name", BAD_GRAPHS)
def test_what_is_no_graph_of_the_workers_is_refused(name):
    graph, nodes, said = BAD_GRAPHS[name]
    with pytest.raises(ValueError, match=said):
        graph.of(nodes)


@pytest.mark.parametrize(
    "fields", [{}, {"topology": "ring", "edges": [(0, 1)]}, {"edges": [(0, 1)], "arguments": {"n": 3}}]
)
def test_a_graph_is_said_once(fields):
    with pytest.raises(ValidationError, match="'topology'"):
        Graph(**fields)


def test_a_random_graph_is_the_same_whatever_was_drawn_before():
    graph = Graph(topology="random_regular_graph", arguments={"d": 3, "n": 16})
    first = sorted(graph.of(16).edges)
    nx.gnp_random_graph(9, 0.5)
    assert sorted(graph.of(16).edges) == first
    other = Graph(topology="random_regular_graph", arguments={"d": 3, "n": 16, "seed": 1})
    assert sorted(other.of(16).edges) != first

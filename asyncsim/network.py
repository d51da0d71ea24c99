"""Networks: which links a message crosses between the server and each worker.

A star gives every worker a link of its own. Any other graph comes from networkx, by a short name, by the name of one
of its generators, or as a list of edges; messages take a shortest path, so links near the server are shared.
"""

from __future__ import annotations

import inspect
import math
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from asyncsim.durations import AnyLaw, Constant
from asyncsim.spec import Positive, Spec, closest, refuse

Node = int | str

#: Short names for common graphs; each takes the number of nodes, workers + 1.
TOPOLOGIES = ("star", "ring", "path", "tree", "torus", "complete")

#: Larger graphs would take longer to lay out than a simulation on them could be waited for.
LARGEST_ARGUMENT, LARGEST_COMPLETE, MOST_HOPS = 1_000_000, 2_000, 5_000_000

#: With a bandwidth below this, times would overflow.
SLOWEST = 1e-90


class Routes(NamedTuple):
    """The links of a network and each worker's way.

    `up[w]` lists the links from worker w to the server, `down[w]` those from the server to worker w, as numbers
    0 … links − 1; each direction of a cable is a link. `ends[i]` are the two nodes of link i.
    """

    links: int
    up: list[list[int]]
    down: list[list[int]]
    ends: list[tuple[Node, Node]]


class Network(Spec):
    """A network of FIFO links, all alike.

    Parameters
    ----------
    topology
        star, ring, path, tree (binary), torus, complete, or the name of a networkx generator, called with `arguments`.
    edges
        The cables themselves, as pairs of nodes, instead of a topology.
    server, workers
        The server's node (default: the graph's first), and each worker's (default: the other nodes in order, over again
        when there are more workers than nodes).
    latency
        Law of the time from the end of sending to arrival, per message and link.
    bandwidth
        Bytes per time unit of each link; unlimited if left out.
    """

    topology: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    edges: Annotated[tuple[Annotated[tuple[Node, Node], Field(strict=False)], ...] | None, Field(strict=False)] = None
    server: Node | None = None
    workers: Annotated[tuple[Node, ...] | None, Field(strict=False)] = None
    latency: AnyLaw = Constant(value=0.0)
    bandwidth: Positive | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> Network:
        if self.edges is not None and self.topology is not None:
            raise refuse("give either 'topology' or 'edges', not both")
        if self.edges is not None and not self.edges:
            raise refuse("'edges' is empty: the server needs a way to the workers")
        if self.bandwidth is not None and self.bandwidth < SLOWEST:
            raise refuse(f"must be at least {SLOWEST:g}, got {self.bandwidth:g}", "bandwidth")
        return self

    @property
    def is_star(self) -> bool:
        """Whether every worker has a link of its own."""
        shape = self.edges is None and self.topology in (None, "star") and not self.arguments
        return shape and self.workers is None and self.server is None

    @property
    def takes_no_time(self) -> bool:
        """Whether a message crosses a link in no time."""
        return self.bandwidth is None and self.latency.mean == 0

    def check(self, workers: int) -> None:
        """Refuse a network that does not reach this many workers."""
        if not self.is_star:
            self.routes(workers)

    def routes(self, workers: int) -> Routes:
        """Return the links and the way of each of `workers` workers; refuse a graph that does not reach them all.

        >>> Network(topology="path").routes(3).up
        [[0], [2, 0], [4, 2, 0]]
        """
        if self.is_star:
            ends: list[tuple[Node, Node]] = []
            for worker in range(workers):
                ends += [(worker + 1, 0), (0, worker + 1)]
            return Routes(2 * workers, [[2 * w] for w in range(workers)], [[2 * w + 1] for w in range(workers)], ends)
        graph = self.graph(workers)
        nodes = list(graph)
        server = nodes[0] if self.server is None else self.server
        _known(server, graph, "server")
        if self.workers is None:
            others = [node for node in nodes if node != server]
            if not others:
                raise refuse("the network has no node besides the server's")
            places = [others[w % len(others)] for w in range(workers)]
        else:
            places = list(self.workers)
            if len(places) != workers:
                raise refuse(f"'workers' must place all {workers} workers, it places {len(places)}")
        return _shortest(graph, server, places)

    def graph(self, workers: int) -> Any:
        """Return the undirected networkx graph for this number of workers."""
        import networkx as nx

        if self.edges is not None:
            return nx.Graph([tuple(edge) for edge in self.edges])
        name, size = self.topology or "star", workers + 1
        if name in TOPOLOGIES:
            if self.arguments:
                raise refuse(f"topology '{name}' takes no arguments; name a networkx generator to give some")
            if workers > LARGEST_ARGUMENT or (name == "complete" and workers > LARGEST_COMPLETE):
                most = LARGEST_COMPLETE if name == "complete" else LARGEST_ARGUMENT
                raise refuse(f"topology '{name}' takes at most {most:,} workers, got {workers:,}")
            side = math.isqrt(size - 1) + 1
            makers = {
                "star": lambda: nx.star_graph(size - 1),
                "ring": lambda: nx.cycle_graph(size),
                "path": lambda: nx.path_graph(size),
                "tree": lambda: nx.full_rary_tree(2, size),
                "torus": lambda: nx.grid_2d_graph(side, side, periodic=True),
                "complete": lambda: nx.complete_graph(size),
            }
            return nx.convert_node_labels_to_integers(makers[name]())
        maker = getattr(nx, name, None)
        if not name.endswith("_graph") or not callable(maker):
            known = [*TOPOLOGIES, *(n for n in dir(nx) if n.endswith("_graph"))]
            raise refuse(
                f"unknown topology '{name}'{closest(name, known)}; allowed: {', '.join(TOPOLOGIES)}, or a networkx "
                "generator such as 'watts_strogatz_graph' with its 'arguments'"
            )
        if any(isinstance(value, int) and value > LARGEST_ARGUMENT for value in self.arguments.values()):
            raise refuse(f"an argument of networkx.{name} is larger than {LARGEST_ARGUMENT:,}")
        # A random graph is a function of its seed, never of the global generators that networkx would fall back on.
        seeded = {"seed": 0} if "seed" in inspect.signature(maker).parameters else {}
        try:
            graph = nx.Graph(maker(**(seeded | self.arguments)))
        except Exception as error:  # networkx generators raise what they like on bad arguments
            raise refuse(f"networkx.{name} does not take these arguments: {error}") from error
        return nx.convert_node_labels_to_integers(graph)


def _known(node: Node, graph: Any, what: str) -> None:
    if node not in graph:
        some = ", ".join(repr(n) for n in list(graph)[:8])
        raise refuse(f"the {what}'s node {node!r} is not in the network; nodes: {some}{' …' if len(graph) > 8 else ''}")


def _shortest(graph: Any, server: Node, places: list[Node]) -> Routes:
    """Route along a breadth-first tree from the server, which visits neighbours in the graph's order."""
    import networkx as nx

    parent = dict(nx.bfs_predecessors(graph, server))
    hops = 0
    number: dict[tuple[Node, Node], int] = {}
    up: list[list[int]] = []
    down: list[list[int]] = []
    for worker, place in enumerate(places):
        _known(place, graph, f"worker {worker}")
        if place != server and place not in parent:
            raise refuse(f"the network is disconnected: worker {worker} (node {place!r}) cannot reach the server")
        way: list[tuple[Node, Node]] = []
        node = place
        while node != server:
            way.append((node, parent[node]))
            node = parent[node]
        hops += len(way)
        if hops > MOST_HOPS:
            raise refuse(f"the workers' ways add up to more than {MOST_HOPS:,} links: take fewer workers, or a tree")
        for a, b in way:
            number.setdefault((a, b), len(number))
            number.setdefault((b, a), len(number))
        up.append([number[hop] for hop in way])
        down.append([number[b, a] for a, b in reversed(way)])
    return Routes(len(number), up, down, list(number))

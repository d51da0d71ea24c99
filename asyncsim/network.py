"""Networks: which links a message crosses between the server and each worker, and what it meets there.

A star gives every worker a link of its own; with a switch, all of them share one more, the server's. Any other graph
comes from networkx, by a short name, by the name of one of its generators, or as a list of edges; messages take a
shortest path, so links near the server are shared.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)

from asyncsim.durations import LAWS, AnyLaw, Constant
from asyncsim.spec import NonNegative, Positive, Spec, closest, entry, named, refuse, shown

Node = int | str

#: Short names for common graphs, laid out for a number of workers: one node each, the server's, and a switch's.
TOPOLOGIES = ("star", "switch", "ring", "path", "tree", "torus", "complete")

#: Larger graphs would take longer to lay out than a simulation on them could be waited for.
LARGEST_ARGUMENT, LARGEST_COMPLETE, MOST_HOPS = 1_000_000, 2_000, 5_000_000

#: With a bandwidth below this, times would overflow.
SLOWEST = 1e-90

_a_law = named("law", LAWS, "law")


def _number_or_law(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, bool | str | list):
        raise refuse(f'must be a number, or a law such as {{ law = "constant", … }}, got {shown(value)}')
    if not isinstance(value, int | float):
        return _a_law(value, info)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise refuse(f"must be finite, got {shown(value)}")
    if number <= 0:
        raise refuse(f"must be greater than 0, got {shown(value)}")
    if number < SLOWEST:
        raise refuse(f"must be at least {SLOWEST:g}, got {number:g}")
    return number


class _NumberOrLawSchema:
    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"choice": "law"}]}


def _plain(value: Any) -> Any:
    return value if isinstance(value, float) else entry(value)


#: Bytes per time unit: a number, or the law of what each message finds on a link, beside the traffic of others.
Bandwidth = Annotated[Any, BeforeValidator(_number_or_law), PlainSerializer(_plain), _NumberOrLawSchema()]
#: Probability that an attempt to send a message over a link fails.
Loss = Annotated[float, Field(ge=0, lt=1)]


class Direction(Spec):
    """What a message meets on a link in one direction: laws of `latency` and `bandwidth`, probability of `loss`."""

    latency: AnyLaw | None = None
    bandwidth: Bandwidth | None = None
    loss: Loss | None = None


class Link(Spec):
    """What is particular to one cable, in both directions or only `up`, to the server, or `down`, to the workers."""

    latency: AnyLaw | None = None
    bandwidth: Bandwidth | None = None
    loss: Loss | None = None
    up: Direction | None = None
    down: Direction | None = None


class Cable(Link):
    """A `Link` and where it is: `between` which two nodes."""

    between: Annotated[tuple[Node, Node], Field(strict=False)]


class Passage(NamedTuple):
    """What a message meets on one link in one direction: its law of `latency`, and so on.

    `bandwidth` is a number, a law, or None if unlimited.
    """

    latency: Any
    bandwidth: Any
    loss: float

    @property
    def takes_no_time(self) -> bool:
        """Whether a message crosses the link in no time."""
        return self.bandwidth is None and self.latency.mean == 0


class Routes(NamedTuple):
    """The links of a network and each worker's way.

    `up[w]` lists the links from worker w to the server, `down[w]` those from the server to worker w, as numbers
    0 … links − 1; each direction of a cable is a link. `ends[i]` are the two nodes of link i. Cable c is link 2 c
    towards the server and link 2 c + 1 away from it.
    """

    links: int
    up: list[list[int]]
    down: list[list[int]]
    ends: list[tuple[Node, Node]]


def ways_of(part: Any) -> Iterator[tuple[tuple[str | int, ...], Direction]]:
    """Yield what a network or a link says of each direction, and where."""
    for name in ("up", "down"):
        if getattr(part, name) is not None:
            yield (name,), getattr(part, name)


class Network(Spec):
    """A network of FIFO links.

    Parameters
    ----------
    topology
        star, switch, ring, path, tree (binary), torus, complete, or the name of a networkx generator, called with
        `arguments`.
    edges
        The cables themselves, as pairs of nodes, instead of a topology.
    server, workers
        The server's node (default: the graph's first), and each worker's (default: the other nodes in order, over again
        when there are more workers than nodes).
    latency
        Law of the time from the end of sending to arrival, per message and link.
    bandwidth
        Bytes per time unit of each link, a number or a law; unlimited if left out.
    loss
        Probability that an attempt to send a message over a link fails; none if left out.
    retry_after
        Time that a link waits for an acknowledgement before it sends a message again; none if left out.
    retries
        How many more attempts a gradient gets on a link; as many as it takes if left out. A model always gets through.
    longest_wait
        A gradient that a link does not take within this time is dropped there.
    up, down
        Latency, bandwidth and loss towards the server, or to the workers, where they differ.
    links
        The same of single cables, where these differ from the others.
    """

    topology: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    edges: Annotated[tuple[Annotated[tuple[Node, Node], Field(strict=False)], ...] | None, Field(strict=False)] = None
    server: Node | None = None
    workers: Annotated[tuple[Node, ...] | None, Field(strict=False)] = None
    latency: AnyLaw = Constant(value=0.0)
    bandwidth: Bandwidth | None = None
    loss: Loss | None = None
    retry_after: NonNegative | None = None
    retries: Annotated[int, Field(ge=0, le=2**31)] | None = None
    longest_wait: Positive | None = None
    up: Direction | None = None
    down: Direction | None = None
    links: Annotated[tuple[Cable, ...] | None, Field(strict=False, min_length=1)] = None

    @model_validator(mode="after")
    def _one_shape(self) -> Network:
        if self.edges is not None and self.topology is not None:
            raise refuse("give either 'topology' or 'edges', not both")
        if self.edges is not None and not self.edges:
            raise refuse("'edges' is empty: the server needs a way to the workers")
        return self

    @property
    def is_star(self) -> bool:
        """Whether every worker has a link of its own."""
        return self.edges is None and self.topology in (None, "star") and self.has_usual_places

    @property
    def has_usual_places(self) -> bool:
        """Whether the graph is as its name says, and server and workers are where they are if nothing is said."""
        return not self.arguments and self.workers is None and self.server is None

    def passages(self, routes: Routes, own: Sequence[Link | None] = ()) -> list[Passage]:
        """Return what a message meets on each link; `own` is what is particular to each worker's own cable.

        >>> network = Network(bandwidth=10.0, up=Direction(bandwidth=1.0))
        >>> [passage.bandwidth for passage in network.passages(network.routes(2), [None, Link(bandwidth=5.0)])]
        [1.0, 10.0, 5.0, 5.0]
        """
        found = [self._passage("up"), self._passage("down")] * (routes.links // 2)
        cables = {frozenset(routes.ends[link]): link for link in range(0, routes.links, 2)} if self.links else {}
        special: dict[int, Link] = {}
        for place, cable in enumerate(self.links or ()):
            if frozenset(cable.between) not in cables:
                ends = " and ".join(map(repr, cable.between))
                raise refuse(f"no message passes a cable between nodes {ends}", "links", place, "between")
            if cables[frozenset(cable.between)] in special:
                raise refuse("this cable is given twice", "links", place, "between")
            special[cables[frozenset(cable.between)]] = cable
        used = [0] * routes.links
        for way in routes.up if any(own) else ():
            for link in way:
                used[link] += 1
        for worker, particular in enumerate(own):
            if particular is not None:
                way = routes.up[worker]
                if not way or used[way[0]] > 1:
                    raise refuse(f"gives worker {worker} no cable of its own, for 'link' in [[cluster.workers]]")
                if way[0] in special:
                    raise refuse(f"the cable of worker {worker} has a 'link' in [[cluster.workers]] already", "links")
                special[way[0]] = particular
        for link, particular in special.items():
            found[link : link + 2] = [self._passage("up", particular), self._passage("down", particular)]
        return found

    def _passage(self, direction: str, cable: Link | None = None) -> Passage:
        """Return what a message meets: what is nearest counts, a cable before the network, a direction before both."""
        levels: list[Any] = [part for level in (cable, self) if level for part in (getattr(level, direction), level)]

        def nearest(name: str, otherwise: Any) -> Any:
            given = (getattr(level, name) for level in levels if level is not None)
            return next((value for value in given if value is not None), otherwise)

        return Passage(nearest("latency", None), nearest("bandwidth", None), nearest("loss", 0.0))

    def check(self, workers: int, own: Sequence[Link | None] = ()) -> None:
        """Refuse a network that does not reach this many workers, or lacks a cable of which something is said."""
        if not self.is_star or self.links or any(own):
            self.passages(self.routes(workers), own)

    def parts(self) -> Iterator[tuple[tuple[str | int, ...], Any]]:
        """Yield where in the network laws and losses may stand, and what stands there: itself first."""
        yield (), self
        yield from ways_of(self)
        for place, cable in enumerate(self.links or ()):
            yield ("links", place), cable
            yield from ((("links", place, *where), way) for where, way in ways_of(cable))

    def routes(self, workers: int) -> Routes:
        """Return the links and the way of each of `workers` workers; refuse a graph that does not reach them all.

        >>> Network(topology="path").routes(3).up
        [[0], [2, 0], [4, 2, 0]]
        """
        ends: list[tuple[Node, Node]]
        if self.is_star:
            ends = [end for node in range(1, workers + 1) for end in ((node, 0), (0, node))]
            return Routes(2 * workers, [[2 * w] for w in range(workers)], [[2 * w + 1] for w in range(workers)], ends)
        if self.topology == "switch" and self.has_usual_places:
            ends = [(1, 0), (0, 1), *(end for node in range(2, workers + 2) for end in ((node, 1), (1, node)))]
            links = range(2, 2 * workers + 2, 2)  # of each worker's own cable
            return Routes(2 * workers + 2, [[link, 0] for link in links], [[1, link + 1] for link in links], ends)
        graph = self.graph(workers)
        nodes = list(graph)
        server = nodes[0] if self.server is None else self.server
        _known(server, graph, "server")
        if self.workers is None:
            taken = (server, 1) if self.topology == "switch" else (server,)
            others = [node for node in nodes if node not in taken]
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
                "switch": lambda: nx.Graph([(0, 1), *((1, node) for node in range(2, size + 1))]),
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

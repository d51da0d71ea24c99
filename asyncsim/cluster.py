"""The machines of a scenario: groups of workers, a server, and the network between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from asyncsim.durations import AnyLaw, Constant, Exponential, Law
from asyncsim.network import SLOWEST, Link, Network, Passage, Routes, ways_of
from asyncsim.problems.shares import DataSplit
from asyncsim.spec import Positive, Spec, refuse

MAX_WORKERS = 10_000_000
LONGEST_TIME = 1e100
#: A worker that crashes more often than so many times in a mean service time would never be done.
MOST_TRIES = 20


class Crash(Spec):
    """Crashes: a worker is up for an exponential time of mean `mean_up`, then down for one of `mean_down`, if at all.

    Without `mean_down` it never returns.
    """

    mean_up: Positive
    mean_down: Positive | None = None


class WorkerGroup(Spec):
    """`count` workers that share a `service` law (time per gradient).

    `link` says what is particular to the cable of each, `crash` how often they crash and for how long, and `data` how
    the data set is divided.
    """

    count: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    service: AnyLaw
    link: Link | None = None
    crash: Crash | None = None
    data: DataSplit | None = None


class Server(Spec):
    """The server: its `service` time per update, and whether it replies after or before it applies one."""

    service: AnyLaw = Constant(value=0.0)
    reply: Literal["after_apply", "before_apply"] = "after_apply"


class Cluster(Spec):
    """The machines: groups of workers in order, a server, and the network between them (instant if left out)."""

    time_unit: str = "s"
    workers: Annotated[tuple[WorkerGroup, ...], Field(strict=False, min_length=1)]
    server: Server = Server()
    network: Network | None = None

    @model_validator(mode="after")
    def _workable(self) -> Cluster:
        if self.size > MAX_WORKERS:
            raise refuse(f"must not have more than {MAX_WORKERS:,} workers in all, got {self.size:,}", "workers")
        for where, law in self.laws_by_place():
            _check_law(law, *where)
            if where[-1] == "bandwidth" and not law.quantile(2.0**-54) >= SLOWEST:
                raise refuse("can be 0, so that a message would take for ever", *where)
        for place, group in enumerate(self.workers):
            if group.link is not None and self.network is None:
                raise refuse("says how a cable is, so it needs a [cluster.network]", "workers", place, "link")
            if group.crash is not None and group.crash.mean_up < group.service.mean / MOST_TRIES:
                said = (
                    f"at least a {MOST_TRIES}th of the mean service time, {group.service.mean:g}, or the worker never"
                )
                raise refuse(
                    f"must be {said} finishes; got {group.crash.mean_up:g}", "workers", place, "crash", "mean_up"
                )
        if self.network is not None:
            try:
                self.network.check(self.size, self.own_links)
            except PydanticCustomError as error:
                raise refuse(error.message(), "network") from error
            except ValidationError as error:
                first = error.errors()[0]
                raise refuse(first["msg"], "network", *first["loc"]) from error
            for name in ("retry_after", "retries"):
                if getattr(self.network, name) is not None and not self.loses_messages:
                    raise refuse(
                        "is about messages that get lost: give 'loss' too, here, under up or down, or of a link",
                        "network",
                        name,
                    )
        return self

    @property
    def size(self) -> int:
        """Number of workers M."""
        return sum(group.count for group in self.workers)

    @property
    def laws(self) -> list[Law]:
        """The service law of each worker."""
        return [group.service for group in self.workers for _ in range(group.count)]

    @property
    def own_links(self) -> list[Link | None]:
        """What is particular to each worker's own cable; empty where nothing is."""
        if all(group.link is None for group in self.workers):
            return []
        return [group.link for group in self.workers for _ in range(group.count)]

    def parts(self) -> Iterator[tuple[tuple[str | int, ...], Any]]:
        """Yield each part that may have laws of links and losses, and where it stands."""
        if self.network is not None:
            yield from ((("network", *where), part) for where, part in self.network.parts())
        for place, group in enumerate(self.workers):
            if group.link is not None:
                yield ("workers", place, "link"), group.link
                yield from ((("workers", place, "link", *where), way) for where, way in ways_of(group.link))

    def laws_by_place(self) -> Iterator[tuple[tuple[str | int, ...], Law]]:
        """Yield each law, and where it stands in the section."""
        for place, group in enumerate(self.workers):
            yield ("workers", place, "service"), group.service
            if group.crash is not None:
                yield ("workers", place, "crash", "mean_up"), Exponential(mean=group.crash.mean_up)
            if group.crash is not None and group.crash.mean_down is not None:
                yield ("workers", place, "crash", "mean_down"), Exponential(mean=group.crash.mean_down)
        yield ("server", "service"), self.server.service
        for where, part in self.parts():
            if part.latency is not None:
                yield (*where, "latency"), part.latency
            if part.bandwidth is not None and not isinstance(part.bandwidth, float):
                yield (*where, "bandwidth"), part.bandwidth

    @property
    def loses_messages(self) -> bool:
        """Whether a loss of messages is given anywhere, be it 0."""
        return any(part.loss is not None for _, part in self.parts())

    @property
    def loses_gradients(self) -> bool:
        """Whether a gradient may be lost: on a link that gives up, or in a crash."""
        network = self.network
        gives_up = network is not None and (network.longest_wait is not None or network.retries is not None)
        return gives_up or any(group.crash is not None for group in self.workers)

    @property
    def crashes(self) -> dict[int, Crash]:
        """The crashes of each worker that crashes."""
        if all(group.crash is None for group in self.workers):
            return {}
        crash = [group.crash for group in self.workers for _ in range(group.count)]
        return {worker: one for worker, one in enumerate(crash) if one is not None}

    def passages(self, routes: Routes) -> list[Passage]:
        """Return what a message meets on each link of the network."""
        assert self.network is not None
        return self.network.passages(routes, self.own_links)

    def instant_worker(self, end: float | None) -> int | None:
        """Return the first worker that gets a model and gives a gradient in no time, if there is one.

        No time is what a clock that shows the longest of the times around cannot tell from none.
        """
        groups = [group.service.mean for group in self.workers]
        none = 1e-15 * max(*groups, self.server.service.mean, end or 0.0)
        if min(groups) > none:
            return None
        away = [False] * self.size
        if self.network is not None:
            routes = self.network.routes(self.size)
            takes_time = [not passage.takes_no_time for passage in self.passages(routes)]
            ways = zip(routes.up, routes.down, strict=True)
            away = [any(takes_time[link] for link in (*up, *down)) for up, down in ways]
        instant = [group.service.mean <= none for group in self.workers for _ in range(group.count)]
        return next((worker for worker in range(self.size) if instant[worker] and not away[worker]), None)


def _check_law(law: Any, *where: str | int) -> None:
    """Refuse a law whose times cannot be added up, or whose quantile function can be negative where that samples it."""
    if law.mean != 0 and not 1 / LONGEST_TIME < law.mean < LONGEST_TIME:
        raise refuse(f"its mean must be between {1 / LONGEST_TIME:g} and {LONGEST_TIME:g}, got {law.mean:g}", *where)
    if law.table is not None:  # the compiled sampler's numbers, none of which can make a negative time
        if not np.isfinite(law.table).all():
            raise refuse("its parameters are so extreme that times would overflow", *where)
        return
    ends = np.array([2.0**-54, 0.5, 1.0 - 2.0**-53])
    try:
        times = np.asarray(law.quantile(ends), dtype=np.float64).reshape(ends.shape)
    except Exception as error:  # a user's code fails as it likes
        raise refuse(f"its quantile function does not take an array of probabilities: {error}", *where) from error
    bad = times[~(np.isfinite(times) & (times >= 0))]
    if bad.size:
        raise refuse(f"can return {bad[0]:.6g}; durations must be finite and not negative", *where)

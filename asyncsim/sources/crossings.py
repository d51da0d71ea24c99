"""Times by address, and links: what the SimPy model's messages meet on their way, without any process of their own."""

from __future__ import annotations

from array import array

import numpy as np

from asyncsim import streams
from asyncsim.durations import Law
from asyncsim.network import Network, Passage

INFINITY = float("inf")


class AddressedDurations:
    """The durations of one worker's draws 0, 1, 2, …, fetched from the compiled sampler a block at a time.

    Where a draw takes several `steps`, its duration is the sum of so many of the law's, added up in order.
    """

    __slots__ = ("block", "first", "index", "law", "purpose", "replica", "seed", "steps", "worker")

    def __init__(self, law: Law, seed: int, replica: int, worker: int, purpose: int, *, index: int = 0, steps: int = 1):
        self.law, self.steps = law, steps
        self.seed, self.replica, self.worker = seed, replica, worker
        self.purpose, self.index = purpose, index
        self.block = array("d")  # a quarter of what a list of floats would take
        self.first = 0

    def __call__(self, draw: int) -> float:
        """Return the duration of this draw. Draws are asked for in increasing order."""
        place = draw - self.first
        if place >= len(self.block):
            self.first, place = draw, 0
            size = min(max(32, 2 * len(self.block)), 1024)
            address = (self.seed, self.replica, self.worker, draw * self.steps)
            each = self.law.sample(*address, size=size * self.steps, purpose=self.purpose, index=self.index)
            times = each[:: self.steps].copy()
            for step in range(1, self.steps):
                times += each[step :: self.steps]
            self.block = array("d", times.tobytes())
        return self.block[place]


class Link:
    """One direction of a cable: a FIFO queue, known by when it is free and when it last delivered.

    Since it is FIFO, a message's whole passage is known when it joins; so a link needs no process of its own.
    """

    __slots__ = ("delivered", "free")

    def __init__(self) -> None:
        self.free = 0.0
        self.delivered = 0.0


class Crossing:
    """A link on a worker's way: what the worker's messages meet there, each at its own address.

    Parameters
    ----------
    link, passage
        The link, and its laws of latency and bandwidth and its loss.
    address
        Seed, replica and worker.
    hop
        How many links come before it.
    size
        Bytes of a message.
    up
        Whether messages are gradients, which can be lost: they have so many attempts, and wait so long, as the
        `network` says.
    """

    def __init__(
        self,
        link: Link,
        passage: Passage,
        address: tuple[int, int, int],
        hop: int,
        size: int,
        network: Network,
        *,
        up: bool,
    ):
        self.link, self.loss, self.size, self.bandwidth = link, passage.loss, size, passage.bandwidth
        self.loss_address = address, (streams.LOSS_UP if up else streams.LOSS_DOWN), hop
        purpose = streams.LATENCY_UP if up else streams.LATENCY_DOWN
        self.latency = AddressedDurations(passage.latency, *address, purpose, index=hop)
        if self.bandwidth is not None and not isinstance(self.bandwidth, float):
            purpose = streams.BANDWIDTH_UP if up else streams.BANDWIDTH_DOWN
            self.bandwidths = AddressedDurations(self.bandwidth, *address, purpose, index=hop)
        self.retry_after = network.retry_after or 0.0
        self.most_attempts = INFINITY if not up or network.retries is None else network.retries + 1
        self.longest_wait = INFINITY if not up or network.longest_wait is None else network.longest_wait

    def occupied(self, draw: int) -> float:
        """Return how long an attempt to send this message occupies the link."""
        if self.bandwidth is None:
            return 0.0
        return self.size / (self.bandwidth if isinstance(self.bandwidth, float) else self.bandwidths(draw))

    def attempts(self, draw: int) -> int:
        """Return how often this message must be sent until it gets through."""
        if self.loss == 0.0:
            return 1
        from asyncsim.sampler import attempts

        (seed, replica, worker), purpose, hop = self.loss_address
        return int(attempts(self.loss, np.uint64(seed), replica, worker, draw, purpose, hop))

    def join(self, now: float, draw: int) -> tuple[float, bool]:
        """Return when a message that joins now is delivered, or given up, and whether it is delivered.

        It waits until the link is free, and is sent as often as it takes. After each attempt but the last, the link
        waits for an acknowledgement; also after the last, if that fails and there is to be no more.
        """
        link = self.link
        begin = max(now, link.free)
        if begin > now + self.longest_wait:
            return now + self.longest_wait, False
        attempts = self.attempts(draw)
        delivered = attempts <= self.most_attempts
        sent, unanswered = (attempts, attempts - 1) if delivered else (self.most_attempts, self.most_attempts)
        link.free = begin + (sent * self.occupied(draw) + unanswered * self.retry_after)
        if not delivered:
            return link.free, False
        link.delivered = max(link.delivered, link.free + self.latency(draw))
        return link.delivered, True

"""A cluster from measured times: service laws by groups of workers, the server's time, the latency of messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asyncsim.calibration.assumptions import RATE, of_prediction, of_times, percent
from asyncsim.calibration.intervals import NEGLIGIBLE, Intervals, intervals, plainly_asynchronous, replies_before
from asyncsim.calibration.laws import FEWEST, Fit, fit_law
from asyncsim.calibration.predictions import Prediction, predict
from asyncsim.calibration.result import Calibration, Part
from asyncsim.calibration.workers import inflation, pool
from asyncsim.cluster import Cluster, Server, WorkerGroup
from asyncsim.network import Network
from asyncsim.staleness import Reply
from asyncsim.trace import Trace, TraceError


def from_times(trace: Trace, warmup: int, unit: str, source: str) -> Calibration:
    """Return the cluster fitted to a trace's times, gradients read before version `warmup` left out.

    A message that was sent while the server was busy may have waited until it arrived, as where a server looks at its
    messages one by one. Its latency then holds a wait that the model adds by itself. So latency is taken from messages
    to a free server. Where that is not that of all messages, both are tried in a simulation, and the one whose
    throughput is closer to the measured one is kept.

    Where such waits show for how long a server is busy with an update beyond making it, that counts as its time, since
    with more workers the others wait for it. The latencies are shorter by as much, less the pause until the worker's
    next read, so that a cycle in which nobody waits takes as long as it did. This is kept if its throughput is right.
    """
    times = intervals(trace, warmup=warmup)
    plain = plainly_asynchronous(trace)
    readings = [(0.0, times.up_free)]
    if plain and abs(_mean(times.up_free) - _mean(times.up)) > NEGLIGIBLE * times.cycle:
        readings.append((0.0, times.up))
    rest = _usual(times.rest)
    found = []
    if rest > NEGLIGIBLE * times.period:
        found.append(_fitted(trace, times, rest, times.up_free, warmup, unit, source))
    if not found or _miss(found[0][0]) > RATE:
        found += [_fitted(trace, times, *reading, warmup, unit, source) for reading in readings]
    return min(found, key=lambda option: _miss(option[0]))[1]


def _usual(times: np.ndarray) -> float:
    """Return the mean with nothing longer than five medians: such messages were late for reasons of their own."""
    return float(np.minimum(times, 5 * np.median(times)).mean()) if times.size else 0.0


def _fitted(
    trace: Trace, times: Intervals, rest: float, up: np.ndarray, warmup: int, unit: str, source: str
) -> tuple[Prediction | None, Calibration]:
    """Return a calibration, and what it predicts where the policy is async.

    `rest` is what the server does after each update, and `up` are the times of messages to it.
    """
    notes: list[str] = []
    service, pause = times.service, _mean(times.turnaround)
    if rest:
        notes.append(f"the server is busy for {rest:.3g} more after each update, which counts as its time")
    elif pause > NEGLIGIBLE * times.cycle:
        service = service + times.turnaround
    measured = [service[times.worker == worker] for worker in range(trace.workers)]
    inflations = np.array([inflation(one) for one in measured])
    groups = _groups(measured, inflations, notes, source)
    fits = [_fit(measured, group, inflations) for group in groups]
    parts = [
        _part("workers", group, fit, np.concatenate([measured[worker] for worker in group]))
        for group, fit in zip(groups, fits, strict=True)
    ]
    server = _server(trace, times, rest, parts, notes)
    network, part, note = _network(times, up, rest - pause if rest else 0.0)
    cluster = Cluster(
        time_unit=unit,
        workers=tuple(WorkerGroup(count=len(g), service=fit.law) for g, fit in zip(groups, fits, strict=True)),
        server=server,
        network=network,
    )
    prediction = predict(trace, cluster, warmup) if plainly_asynchronous(trace) else None
    return prediction, Calibration(
        cluster=cluster,
        parts=(*parts, *([part] if part else [])),
        assumptions=(*of_times(trace, times, groups, fits, inflations, rest > 0), *of_prediction(prediction)),
        notes=(*notes, *([note] if note else [])),
        source=source,
        about=f"{service.size:,} service times of {trace.workers} workers, in {unit}",
        order=tuple(worker for group in groups for worker in group),
    )


def _miss(prediction: Prediction | None) -> float:
    return 0.0 if prediction is None else abs(prediction.throughput - 1.0)


def _mean(times: np.ndarray) -> float:
    return float(times.mean()) if times.size else 0.0


def _groups(measured: Sequence[np.ndarray], inflations: np.ndarray, notes: list[str], source: str) -> list[list[int]]:
    """Return the groups of workers that cannot be told apart; workers with few durations join those closest in mean."""
    enough = [worker for worker, times in enumerate(measured) if times.size >= FEWEST]
    if not enough:
        most = max(times.size for times in measured)
        raise TraceError(f"{source}: no worker has {FEWEST} service times (the most is {most}): record more updates")
    pooled = pool([measured[worker] for worker in enough], inflations[enough].tolist())
    groups = [[enough[place] for place in members] for members in pooled]
    few = sorted(set(range(len(measured))) - set(enough))
    means = [np.concatenate([measured[worker] for worker in group]).mean() for group in groups]
    for worker in few:
        own = measured[worker].mean() if measured[worker].size else means[0]
        groups[int(np.argmin(np.abs(np.array(means) - own)))].append(worker)
        notes.append(f"worker {worker} has {measured[worker].size} service times, too few: counted with those closest")
    return sorted(sorted(group) for group in groups)


def _fit(measured: Sequence[np.ndarray], group: Sequence[int], inflations: np.ndarray) -> Fit:
    durations = np.concatenate([measured[worker] for worker in group])
    return fit_law(durations, inflation=float(inflations[list(group)].mean()))


def _part(name: str, workers: Sequence[int], fit: Fit, durations: np.ndarray) -> Part:
    return Part(name, tuple(workers), fit.law, fit.size, float(durations.mean()), fit.distance, fit.noise)


def _server(trace: Trace, times: Intervals, rest: float, parts: list[Part], notes: list[str]) -> Server:
    reply: Reply = "before_apply" if replies_before(trace) else "after_apply"
    if times.server.size < FEWEST:
        notes.append("the server's time per update is not known, and taken as 0")
        return Server(reply=reply)
    durations = times.server + rest
    busy = float(durations.mean()) / times.period
    if busy <= NEGLIGIBLE:
        notes.append(f"the server is busy {percent(busy)} of the time, and its time per update taken as 0")
        return Server(reply=reply)
    fit = fit_law(durations, inflation=inflation(durations))
    parts.append(_part("server", (), fit, durations))
    return Server(service=fit.law, reply=reply)


def _network(times: Intervals, up: np.ndarray, spared: float) -> tuple[Network | None, Part | None, str | None]:
    """Return the links, how they were fitted, and a note where they are left out.

    `spared` is by how much the two ways of a cycle together are shorter than measured; each is by the same factor.
    """
    both_ways = _mean(times.down) + _mean(up)
    factor = max(0.0, 1.0 - spared / both_ways) if both_ways > 0 else 1.0
    ways = [factor * way for way in (times.down, up) if way.size]
    if sum(way.size for way in ways) < FEWEST:
        return None, None, "the times of messages are not known, and taken as 0"
    share = sum(_mean(way) for way in ways) / times.cycle
    if share <= NEGLIGIBLE:
        return None, None, f"messages take {percent(share)} of a worker's cycle, and the network is left out"
    few = min(way.size for way in ways)  # equally many of both ways, so that the mean of the two is right
    both = np.concatenate([way[_spread(way.size, few)] for way in ways])
    fit = fit_law(both, inflation=inflation(both))
    return Network(topology="star", latency=fit.law), _part("network", (), fit, both), None


def _spread(size: int, count: int) -> np.ndarray:
    """Return `count` places, spread evenly over 0 … size − 1."""
    return np.arange(count) * size // count

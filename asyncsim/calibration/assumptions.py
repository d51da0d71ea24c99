"""Which assumptions of the model does a trace bear out? One line each: the figure, and whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asyncsim.calibration.delays import NOISE_REPLICAS, REPORT_SEED, StalenessFit
from asyncsim.calibration.intervals import (
    NEGLIGIBLE,
    Intervals,
    computing_at_start,
    gradients_per_update,
    share_cancelled,
)
from asyncsim.calibration.laws import TOLERANCE, Fit, distance
from asyncsim.calibration.predictions import Measured, Prediction
from asyncsim.durations import Empirical, Exponential
from asyncsim.trace import APPLIED, Trace

#: Correlations and relative changes below this do no harm, however sure one is of them.
SMALL, ERRORS = 0.05, 3.0
#: A simulated throughput that is off by no more than this is right.
RATE = 0.03
#: Growth of the service time per further computing worker that counts, and the error beyond which it is not known.
GROWTH, UNKNOWN = 0.02, 0.02


class Assumption(NamedTuple):
    """One assumption: `holds` is None where the trace cannot tell; `modelled` says what was done where it does not."""

    name: str
    figure: str
    holds: bool | None
    modelled: str = ""

    @property
    def verdict(self) -> str:
        """What the report says."""
        if self.holds is None:
            return "cannot be told"
        return "holds" if self.holds else f"does not hold{': ' * bool(self.modelled)}{self.modelled}"

    @property
    def warning(self) -> str | None:
        """A sentence where the assumption fails and the model does nothing about it."""
        if self.holds is False and not self.modelled:
            return f"the cluster assumes that {self.name}, which does not hold: {self.figure}"
        return None


def of_times(
    trace: Trace,
    times: Intervals,
    groups: Sequence[Sequence[int]],
    fits: Sequence[Fit],
    inflation: np.ndarray,
    server_known: bool = False,
) -> list[Assumption]:
    """Return the assumptions as a trace with times bears them out; `inflation` is that of each worker.

    `server_known` says that the pause between a worker's update and its next read is part of the server's time.
    """
    found = [
        _alike(times, groups),
        _exponential(times, groups, fits),
        _named_law(fits),
        _independent(trace, times),
        _steady(trace, times, inflation),
        _no_contention(trace, times, inflation),
        _one_gradient(trace),
        _reads_at_once(times, "server" if server_known else "service"),
        _same_latency(times),
    ]
    cancelled = share_cancelled(trace)
    if cancelled:
        found.append(
            Assumption("every gradient is finished", f"{cancelled:.1%} were stopped, the long ones", cancelled < 0.01)
        )
    return [assumption for assumption in found if assumption is not None]


def of_prediction(found: Prediction | None) -> list[Assumption]:
    """Return whether the cluster, simulated, does what was measured; nothing where the policy is not known."""
    if found is None:
        return []
    return [
        Assumption(
            "all of this together gives the throughput",
            f"{found.throughput - 1:+.1%} in a simulation, chance gives {percent(found.throughput_noise)}",
            abs(found.throughput - 1) <= max(RATE, found.throughput_noise),
        ),
        Assumption(
            "all of this together gives the staleness",
            f"off by {found.staleness:.3f} in total variation, chance gives {found.staleness_noise:.3f}",
            found.staleness <= max(TOLERANCE, found.staleness_noise),
        ),
    ]


def percent(value: float) -> str:
    """Return a share with two significant digits."""
    return f"{100 * value:.2g}%"


# --- with times ---------------------------------------------------------------------------------------------------


def _alike(times: Intervals, groups: Sequence[Sequence[int]]) -> Assumption:
    means = [times.service[np.isin(times.worker, group)].mean() for group in groups]
    if len(groups) == 1:
        return Assumption("workers are alike", "no two differ at 1 %", True)
    said = f"{len(groups)} groups at 1 %, the slowest takes {max(means) / min(means):.3g} times as long as the fastest"
    return Assumption("workers are alike", said, False, "a law for each group")


def _exponential(times: Intervals, groups: Sequence[Sequence[int]], fits: Sequence[Fit]) -> Assumption:
    said: list[str] = []
    good = True
    for group, fit in zip(groups, fits, strict=True):
        service = times.service[np.isin(times.worker, group)]
        off = distance(Exponential(mean=float(service.mean())), service)
        good &= off <= max(TOLERANCE, fit.noise)
        said.append(f"{off:.3f}")
    spread = times.service.std() / times.service.mean()
    figure = f"distance {', '.join(said[:4])}{' …' * (len(said) > 4)}; standard deviation / mean {spread:.3g}"
    return Assumption("service times are exponential", figure, good, f"{fits[0].name}")


def _named_law(fits: Sequence[Fit]) -> Assumption:
    free = [place for place, fit in enumerate(fits) if isinstance(fit.law, Empirical)]
    worst = max(fit.distance for fit in fits)
    if free:
        return Assumption("a named law fits", f"none for {len(free)} of {len(fits)} groups", False, "empirical law")
    return Assumption("a named law fits", f"distance {worst:.3f}, chance gives {max(f.noise for f in fits):.3f}", True)


def _independent(trace: Trace, times: Intervals) -> Assumption:
    centred = _relative(trace, times) - 1.0
    same = np.diff(_cell(trace, times)) == 0
    power = float(centred @ centred)
    pairs = int(same.sum())
    name = "service times are independent"
    if power <= 1e-12 * centred.size or pairs < 20:
        return Assumption(name, "they are constant" if pairs >= 20 else "too few", True if pairs >= 20 else None)
    correlation = float((centred[:-1] * centred[1:])[same].sum() / power * centred.size / pairs)
    return Assumption(
        name,
        f"correlation of a worker's successive ones {correlation:+.3f}",
        abs(correlation) <= max(SMALL, ERRORS / np.sqrt(pairs)),
    )


def _steady(trace: Trace, times: Intervals, inflation: np.ndarray) -> Assumption:
    """Compare the first third of each replica's time with the last."""
    start, replica = trace["start_time"][times.rows], trace["replica"][times.rows]
    last = np.array([start[replica == one].max(initial=0.0) for one in trace.replicas])
    position = start / np.maximum(last[np.searchsorted(trace.replicas, replica)], np.finfo(float).tiny)
    relative = _relative(trace, times)
    early, late = relative[position < 1 / 3], relative[position > 2 / 3]
    name = "nothing drifts"
    if min(early.size, late.size) < 20:
        return Assumption(name, "too few", None)
    change = float(late.mean() - early.mean())
    error = float(relative.std() * np.sqrt(inflation.mean() * (1 / early.size + 1 / late.size)))
    figure = f"service times change by {change:+.1%} (± {2 * error:.1%}) from the first third to the last"
    return Assumption(name, figure, abs(change) <= max(SMALL, ERRORS * error))


def _no_contention(trace: Trace, times: Intervals, inflation: np.ndarray) -> Assumption:
    """Regress service times on the number of workers that compute when one starts, worker by worker."""
    name = "workers do not contend for cores"
    computing = computing_at_start(trace, times.rows)
    known = ~np.isnan(computing)
    if known.sum() < 20:
        return Assumption(name, "too few", None)
    computing, cell = computing[known], _cell(trace, times)[known]
    centred = computing - _means(cell, computing)[cell]
    relative = (_relative(trace, times) - 1.0)[known]
    power = float(centred @ centred)
    many = f"{computing.mean():.3g} workers compute at a time"
    if power < 1e-9 * centred.size:
        return Assumption(name, f"always {many}", None)
    slope = float(centred @ relative / power)
    rest = relative - slope * centred
    error = float(np.sqrt(inflation.mean() * rest.var() / power))
    figure = f"{slope:+.1%} (± {2 * error:.1%}) per further computing worker; {many}"
    if error > UNKNOWN and abs(slope) <= ERRORS * error:
        return Assumption(name, f"almost always {many}", None)
    return Assumption(name, figure, slope <= max(GROWTH, ERRORS * error))


def _one_gradient(trace: Trace) -> Assumption:
    number = gradients_per_update(trace)
    applied = float((trace["status"] == APPLIED).mean())
    return Assumption(
        "each gradient makes an update",
        f"{number:.3g} per update, {applied:.1%} of gradients applied",
        number == 1 and applied == 1,
        "the trace has another policy: give the scenario the same",
    )


def _reads_at_once(times: Intervals, counted: str) -> Assumption:
    back = float(times.turnaround.mean())
    share = back / times.cycle
    return Assumption(
        "a worker reads as soon as its update is made",
        f"it takes {percent(share)} of its cycle",
        share <= NEGLIGIBLE,
        f"counted as {counted} time",
    )


def _same_latency(times: Intervals) -> Assumption | None:
    if times.up_free.size < 20 or times.down.size < 20:
        return None
    down, up = float(times.down.mean()), float(times.up_free.mean())
    if down + up <= NEGLIGIBLE * times.cycle:
        said = f"{percent((down + up) / times.cycle)} of a cycle"
        return Assumption("messages take the same time both ways", said, True)
    figure = f"{down:.3g} to the worker, {up:.3g} to the server"
    apart = abs(down - up) > 0.1 * max(down, up)
    return Assumption("messages take the same time both ways", figure, not apart, "one law of both")


def _cell(trace: Trace, times: Intervals) -> np.ndarray:
    """Return a number for the replica and worker of each duration."""
    return np.searchsorted(trace.replicas, trace["replica"][times.rows]) * trace.workers + times.worker


def _means(cell: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.bincount(cell, weights=values) / np.maximum(np.bincount(cell), 1)


def _relative(trace: Trace, times: Intervals) -> np.ndarray:
    """Return service times divided by the mean of their worker in their replica."""
    cell = _cell(trace, times)
    return times.service / np.maximum(_means(cell, times.service)[cell], np.finfo(float).tiny)


# --- without times ------------------------------------------------------------------------------------------------


def of_delays(trace: Trace, measured: Measured, fits: Sequence[StalenessFit]) -> list[Assumption]:
    """Return the assumptions as staleness alone bears them out."""
    best = fits[0]
    exponential = next(fit for fit in fits if isinstance(fit.law, Exponential))
    found = [
        Assumption(
            "service times are exponential",
            f"staleness off by {exponential.distance:.3f} in total variation, chance gives {exponential.noise:.3f}",
            exponential.distance <= exponential.noise,
            f"{best.law.law}",
        ),
        Assumption(
            "alike, independent workers give this staleness",
            f"off by {best.distance:.3f} in total variation, chance gives {best.noise:.3f}",
            best.distance <= best.noise,
        ),
        _shares(trace, measured, best),
        _one_gradient(trace),
    ]
    said = "no times"
    rest = ("the server and messages take no time", "nothing drifts", "workers do not contend for cores")
    return [assumption for assumption in found if assumption] + [Assumption(name, said, None) for name in rest]


def _shares(trace: Trace, measured: Measured, fit: StalenessFit) -> Assumption | None:
    """Compare the numbers of updates per worker with what the law gives by chance."""
    if np.unique(trace["worker"]).size < max(2, measured.workers):
        return None
    chance = _spreads(measured.simulated(fit.law, updates=NOISE_REPLICAS * measured.updates, seed=REPORT_SEED))
    limit = float(np.quantile(chance, 0.99))
    spread = max(_spreads(trace))
    figure = f"shares of updates spread by {percent(spread)}, chance gives up to {percent(limit)}"
    return Assumption("workers are alike", figure, spread <= limit)


def _spreads(trace: Trace) -> list[float]:
    """Return the standard deviation of the workers' numbers of updates over their mean, for each replica."""
    spreads = []
    for _, _, rows in trace.slices():
        applied = trace["worker"][rows][trace["status"][rows] == APPLIED]
        counts = np.bincount(applied, minlength=trace.workers)
        spreads.append(float(counts.std() / counts.mean()))
    return spreads

"""The summary of a run: what happened, beside what theory says should."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from asyncsim import estimates, staleness, theory
from asyncsim.certificate import acceptable_saddle, certificates
from asyncsim.methods import SEACD
from asyncsim.prediction import predict
from asyncsim.problems.base import complete
from asyncsim.problems.empirical_risk import EmpiricalRisk
from asyncsim.runs import Run
from asyncsim.scenario import Scenario, parse_condition
from asyncsim.sources import choose_engine
from asyncsim.trace import STATUSES, Trace


def summarise(scenario: Scenario, run: Run, *, replayed: bool = True) -> dict[str, Any]:
    """Return the numbers that `summary.json` holds; of a run not `replayed`, those that its trace alone gives.

    Over replicas: `updates`, `time` and the final metrics are means, staleness is pooled, `throughput` is updates per
    time unit over all of them. The first `warmup` updates are left out of staleness and throughput.
    """
    trace, warmup = run.trace, scenario.run.warmup
    counts = staleness.histogram_of(trace, warmup=warmup)
    measured = staleness.summary_of(np.flatnonzero(counts), counts[counts > 0]) if counts.any() else None
    summary: dict[str, Any] = {
        "name": scenario.name,
        "workers": trace.workers,
        "replicas": int(trace.replicas.size),
        "updates": _number(float(trace.updates.mean())),
        "time": None,
        "time_unit": "s" if scenario.cluster is None else scenario.cluster.time_unit,
        "throughput": None,
        "gradients": dict(zip(STATUSES, _numbers_of(trace).tolist(), strict=True)),
        "staleness": measured,
        "theory": predict(scenario) if replayed and all(kind != "crash" for *_, kind in trace.events) else {},
        "engine": choose_engine(scenario) if scenario.run.source == "simulate" else None,
    }
    if measured is not None:
        # Replying before applying adds one to every staleness, and nothing to the momentum.
        early = scenario.cluster is not None and scenario.cluster.server.reply == "before_apply"
        mean = max(measured["mean"] - early, 0.0)
        summary["implied_momentum"] = theory.momentum_from_mean_staleness(mean)
    if trace.has_times:
        summary["time"] = float(np.where(trace.updates > 0, trace.times_of(trace.updates - 1), 0.0).mean())
        summary["throughput"] = pooled_throughput(trace, warmup)
    if run.metric_names:
        summary["final"] = {name: float(values.mean()) for name, values in final_values(run).items()}
        if "loss" in summary["final"]:
            summary["final_loss"] = summary["final"]["loss"]
    if scenario.metrics.target is not None and replayed:
        updates, times = first_passage(run, scenario.metrics.target)
        reached = ~np.isnan(updates)
        summary["target"] = {
            "condition": scenario.metrics.target,
            "reached": int(reached.sum()),
            "updates": _mean(updates[reached]),
            "time": _mean(times[reached]),
        }
    if replayed:
        summary |= run_estimates(scenario, run) | _of_method(scenario, run) | _of_data(scenario)
    summary["diverged"] = [str(divergence) for divergence in run.diverged]
    summary["scenario_sha256"] = scenario.sha256()
    summary["trace_sha256"] = trace.sha256()
    summary["iterate_sha256"] = iterate_sha256(run.final_iterates)
    return summary


def iterate_sha256(final_iterates: np.ndarray) -> str:
    """Return the hash of the final iterates."""
    return hashlib.sha256(np.ascontiguousarray(final_iterates, "<f8").tobytes()).hexdigest()


def run_estimates(scenario: Scenario, run: Run) -> dict[str, Any]:
    """Return the estimates that need all replicas: fitted momentum and decay rate, or why there is none."""
    found: dict[str, Any] = {}
    wanted = scenario.metrics.record
    for name in ("momentum", "rate"):
        if name not in wanted:
            continue
        if name == "momentum" and run.diverged:
            found[name] = {"refused": str(run.diverged[0])}
            continue
        try:
            if name == "momentum":
                assert run.iterates is not None
                explicit = getattr(scenario.method, "momentum", 0.0)
                gradient = scenario.problem.gradient  # type: ignore[union-attr]
                fit: Any = estimates.fit_momentum(run.iterates, gradient, explicit=explicit, seed=scenario.seed)
            else:
                fit = estimates.fit_rate(_up_to_divergence(run), seed=scenario.seed)
            found[name] = vars(fit).copy()
        except estimates.TooFewData as error:
            found[name] = {**vars(error.estimate), "refused": str(error)}
        except ValueError as error:
            found[name] = {"refused": str(error)}
    return found


def _of_method(scenario: Scenario, run: Run) -> dict[str, Any]:
    """Return what the method says about the run, and certificates where it asks for an accuracy ε.

    `method` holds its parameters, one number per replica of each of its facts, and warnings. `certificate` has an entry
    per replica: gradient_norm, lambda_min, order. `saddle_region` has what `time_in_saddle_region` gives.
    """
    if scenario.problem is None:
        return {}
    method, problem = scenario.method, complete(scenario.problem)
    found: dict[str, Any] = {}
    warnings: list[str] = []
    if run.facts:
        found["method"] = {name: values.tolist() for name, values in run.facts.items()}
    if isinstance(method, SEACD):
        parameters = method.parameters(problem)._asdict()
        warnings += parameters.pop("warnings")
        found["method"]["parameters"] = parameters
    if getattr(method, "epsilon", None) is not None:
        found["certificate"] = certificates(problem, method, run.final_iterates, seed=scenario.seed)
        bound = next((known["bound"] for known in found["certificate"]), None)
        note = acceptable_saddle(problem, method.epsilon, bound)  # type: ignore[union-attr]
        warnings += [] if note is None else [note]
        spent = time_in_saddle_region(run, method, bound)
        if spent is not None:
            found["saddle_region"] = {name: values.tolist() for name, values in spent.items()}
    if isinstance(method, SEACD) and (late := int(run.facts["late"].sum())):
        many = f"{late:,} gradient{'s were' if late > 1 else ' was'}"
        warnings.append(f"{many} staler than delay_bound = {method.delay_bound}: the energy may rise")
    if warnings or isinstance(method, SEACD):
        found.setdefault("method", {})["warnings"] = warnings
    return found


def time_in_saddle_region(run: Run, method: Any, bound: float | None) -> dict[str, np.ndarray] | None:
    """Return the `updates` and the virtual `time` that each replica spent at points that the theory calls saddles.

    Those are the points x with ‖∇f(x)‖ ≤ ε and λ_min(∇²f(x)) < −√(ρε), ε = `method.epsilon` and −√(ρε) = `bound`: of
    first order and not of second. A measured version stands for those up to the next one measured, so the answer is as
    fine as the metrics are; the last one measured stands for none. Without a clock there is no `time`. None where
    "grad_norm" and "lambda_min" were not measured, where ρ is not known, or under a projection, where the gradient is
    not what says whether a point is stationary.
    """
    measured = {"grad_norm", "lambda_min"} <= set(run.metric_names)
    if bound is None or not measured or getattr(method, "projection", None) is not None:
        return None
    table, names = run.measurements, ("update", "time") if run.trace.has_times else ("update",)
    norm, lowest = (table["metric"] == run.metric_names.index(name) for name in ("grad_norm", "lambda_min"))
    inside = (table["value"][norm] <= method.epsilon) & (table["value"][lowest] < bound)
    places = [np.flatnonzero(table["replica"][norm] == replica) for replica in run.trace.replicas]
    found = {
        name: np.array([np.diff(table[name][norm][mine]) @ inside[mine][:-1] for mine in places]) for name in names
    }
    return {"updates": found.pop("update").astype(np.int64), **found}


def _of_data(scenario: Scenario) -> dict[str, Any]:
    """Return how the data were divided among the workers, where they were.

    `data` holds the split, and one entry per worker: its number of `samples`, and how many it has of each of `classes`.
    """
    problem = scenario.problem
    if not isinstance(problem, EmpiricalRisk) or problem.shares is None:
        return {}
    shares, held = problem.shares, problem.held
    found: dict[str, Any] = {"split": shares.split, "samples": held.sizes.tolist()}
    if shares.alpha is not None:
        found["alpha"] = shares.alpha
    if hasattr(problem, "classes"):
        found["classes"] = held.counts(problem.classes).tolist()
    return {"data": found}


def _up_to_divergence(run: Run) -> Any:
    """Return the squared distances up to the first update at which a replica diverged."""
    distances = run.squared_distances
    assert distances is not None
    last = min((divergence.update for divergence in run.diverged), default=distances.shape[1])
    return distances[:, : last + 1]


def final_values(run: Run) -> dict[str, np.ndarray]:
    """Return the last measured value of each metric, one per replica."""
    table = run.measurements
    values = {}
    for code, name in enumerate(run.metric_names):
        mine = table["metric"] == code
        last = np.searchsorted(table["replica"][mine], run.trace.replicas, side="right") - 1
        values[name] = table["value"][mine][last]
    return values


def first_passage(run: Run, condition: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (updates, time) at which each replica was first measured to meet a condition such as "loss < 0.5".

    NaN where it never was. The answer is as fine as the metrics are measured.
    """
    metric, sign, bound = parse_condition(condition)
    table = run.measurements
    mine = table["metric"] == run.metric_names.index(metric)
    met = mine & ((table["value"] < bound) if sign == "<" else (table["value"] > bound))
    updates = np.full(run.trace.replicas.size, np.nan)
    times = updates.copy()
    for place, replica in enumerate(run.trace.replicas):
        rows = np.flatnonzero(met & (table["replica"] == replica))
        if rows.size:
            updates[place], times[place] = table["update"][rows[0]], table["time"][rows[0]]
    return updates, times


def _numbers_of(trace: Trace) -> np.ndarray:
    """Return how many gradients have each status."""
    counts = [np.bincount(part["status"], minlength=len(STATUSES)) for part in trace.parts("status")]
    return np.sum([np.zeros(len(STATUSES), dtype=np.int64), *counts], axis=0)


def pooled_throughput(trace: Trace, warmup: int) -> float | None:
    """Return updates per time unit over all replicas: all their updates, by all the time these took."""
    rates, counts = staleness.throughput(trace, warmup=warmup), trace.updates - warmup
    known = ~np.isnan(rates)
    return float(counts[known].sum() / (counts[known] / rates[known]).sum()) if known.any() else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value

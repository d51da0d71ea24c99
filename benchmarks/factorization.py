"""SEACD in parallel against gradient descent: `python benchmarks/factorization.py [FILE]`, 10 minutes; `--quick`, one.

A photograph of 667 × 1024 grey values is factored without negative parts at eight ranks. Compared is the wall time to
the same mean squared error, from the same start: SEACD with two workers in shared memory, which have a factor each as
their block, and one BLAS thread; projected gradient descent with one BLAS thread, and with two; scikit-learn's
coordinate descent, one thread. SEACD's workers send a block's gradient ("jacobi"), or how far a pass over the block's
coordinates, one after another, has moved them ("in sequence"). Its gradients are compared with gradient descent at the
same step, the smaller of what is best for either, and each at its own best; its passes at their own best. The best step
is that of a grid with the least error after a fixed number of passes; SEACD's is sought on a schedule of two workers in
turns.

What is raced against each other takes turns, three rounds of it, and the medians of the rounds are reported.

Gradient descent's error is known after every iteration, from the gradient's own products. Of SEACD's run there is the
trace: a replay of it gives the error at a hundred versions, and the last version, which must be the run's bit for bit.

Costs of SEACD beside gradients, and of a compiled sweep, are processor time, and `--costs` measures nothing else. The
rest is wall time and wants a quiet machine: "busy" in the table is the share of the wall time of gradient descent in
which it ran. What is done is kept among the temporary files, rank by rank, so that a run that was cut off goes on where
it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import click  # noqa: E402
import numpy as np  # noqa: E402
from factorization_costs import WORKERS, Sweep, costs, seacd, sweeps, work  # noqa: E402
from factorization_report import draw, report, with_costs  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402
from timing import commit, take_turns  # noqa: E402

import asyncsim  # noqa: E402
from asyncsim.allocator import keep_freed_memory  # noqa: E402
from asyncsim.methods import SEACD  # noqa: E402
from asyncsim.problems.matrix_factorization import NonNegativeFactorization  # noqa: E402
from asyncsim.scenario import Metrics, build  # noqa: E402
from asyncsim.trace import Trace  # noqa: E402

SHAPE = (667, 1024)
RANKS = (6, 11, 21, 42, 84, 112, 167, 334)
QUICK_RANKS = (6, 42)
#: Seconds of a run of gradient descent; everything else takes as many passes, or a share of them.
SECONDS, QUICK_SECONDS = 2.0, 0.3
ROUNDS, QUICK_ROUNDS = 3, 1
#: Steps that are tried, in units of 1/L, L = 14σ₁/mn. A pass in sequence allows larger ones, the more so at high rank.
STEPS = {
    "jacobi": [2 ** (half / 2) for half in range(2, 9)],
    "gauss_seidel": [2 ** (half / 2) for half in range(7, 17)],
}
#: The candidates in the report, each with its own best step.
OWN = {"gd": "gd", "seacd": "jacobi", "sequence": "gauss_seidel"}
#: Share of the passes for which a step is tried.
TRIAL = 0.25

#: What returns f and ∇f.
Both = Callable[[np.ndarray], tuple[Any, np.ndarray]]
#: Seconds of a run, and the errors there.
Curve = tuple[np.ndarray, np.ndarray]


# --- the problem ------------------------------------------------------------------------------------------------------


def photograph(file: str | None, folder: str) -> str:
    """Return the path of a grey picture of `SHAPE` or less: the middle of a file, or scikit-learn's, enlarged."""
    from PIL import Image

    if file is None:
        from sklearn.datasets import load_sample_image

        picture = Image.fromarray(load_sample_image("china.jpg")).convert("L")
        picture = picture.resize((SHAPE[1], round(picture.height * SHAPE[1] / picture.width)), Image.Resampling.LANCZOS)
    else:
        picture = Image.open(file).convert("L")
    rows, columns = min(SHAPE[0], picture.height), min(SHAPE[1], picture.width)
    left, top = (picture.width - columns) // 2, (picture.height - rows) // 2
    path = Path(folder, "photograph.png")
    picture.crop((left, top, left + columns, top + rows)).save(path)
    return str(path)


# --- the candidates ---------------------------------------------------------------------------------------------------


def shared_residual(problem: NonNegativeFactorization, x: np.ndarray) -> tuple[float, np.ndarray]:
    """Return f and ∇f by way of the residual, which both factors share: 6mnk operations at any rank."""
    left, right = problem.factors(x)
    residual = left @ right.T - problem.matrix
    scale = 2.0 / residual.size
    gradient = np.concatenate([residual @ right, residual.T @ left]).reshape(-1)
    return 0.5 * scale * float(np.vdot(residual, residual)), scale * gradient


def descend(both: Both, x: np.ndarray, step: float, passes: int) -> Curve:
    """Return the seconds at which the errors before each pass of projected gradient descent were known, and these."""
    errors, seconds, begin = [], [], time.perf_counter()
    for _ in range(passes + 1):
        error, gradient = both(x)
        errors.append(float(error))
        seconds.append(time.perf_counter() - begin)
        if not errors[-1] <= 10.0 * errors[0]:
            break
        x = np.maximum(x - step * gradient, 0.0)
    return np.array(seconds), np.array(errors)


def in_turns(passes: int) -> Trace:
    """Return the trace of workers that take turns; each reads the version that it has just made."""
    update = np.arange(WORKERS * passes)
    return Trace(
        {
            "replica": np.zeros_like(update),
            "worker": update % WORKERS,
            "draw": update // WORKERS,
            "read_version": np.maximum(update - WORKERS + 1, 0) * (update >= WORKERS),
            "update": update,
            "status": np.zeros_like(update),
        },
        seed=0,
        workers=WORKERS,
        updates=[update.size],
    )


def replayed(trace: Trace, problem: Any, method: SEACD, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return versions, the errors there, the last infinite where the run diverged; and the last version."""
    every = max(1, int(trace.updates[0]) // points)
    run = asyncsim.replay(trace, method, problem, metrics=Metrics(every=every))
    versions, errors = (np.array(run.measurements[name]) for name in ("update", "value"))
    if run.diverged:
        errors[-1] = math.inf
    return versions, errors, run.final_iterates[0]


def recorded(problem: Any, method: SEACD, passes: int) -> Curve:
    """Return seconds of a real run with two workers, and the errors there."""
    scenario = build(
        {
            "cluster": {"workers": [{"count": WORKERS, "service": {"law": "constant", "value": 1.0}}]},
            "problem": {"kind": "nmf", "photograph": problem.photograph, "rank": problem.rank},
            "method": method.model_dump(mode="json", exclude_none=True),
            "run": {"source": "record", "backend": "shared_memory", "updates": WORKERS * passes},
        }
    )
    recording = asyncsim.record(scenario)
    if recording.ended is not None:
        raise RuntimeError(recording.ended)
    versions, errors, last = replayed(recording.trace, problem, method, 100)
    if not np.array_equal(last, recording.final_iterate):
        raise RuntimeError("the replay is not the run")
    by_update = recording.trace["apply_time"][np.argsort(recording.trace["update"])]
    return np.append(0.0, by_update)[versions], errors


def by_scikit_learn(problem: NonNegativeFactorization, x: np.ndarray, target: float, limit: float) -> dict[str, Any]:
    """Return the iterations of scikit-learn's coordinate descent to the target, and the seconds of as many at once."""
    from sklearn.decomposition import non_negative_factorization

    matrix = np.array(problem.matrix)
    start = [np.ascontiguousarray(part) for part in (problem.factors(x)[0], problem.factors(x)[1].T)]

    def after(factors: list[np.ndarray], iterations: int) -> list[np.ndarray]:
        copies = (factor.copy() for factor in factors)
        return list(
            non_negative_factorization(
                matrix, *copies, n_components=problem.rank, init="custom", tol=0.0, max_iter=iterations
            )[:2]
        )

    def error(factors: list[np.ndarray]) -> float:
        return float(np.square(factors[0] @ factors[1] - matrix).mean())

    factors = start
    iterations, end = 0, time.perf_counter() + limit
    while error(factors) > target and time.perf_counter() < end:
        factors = after(factors, 1)
        iterations += 1
    if error(factors) > target:
        return {"iterations": iterations, "seconds": None}
    begin = time.perf_counter()
    after(start, iterations)
    return {"iterations": iterations, "seconds": time.perf_counter() - begin}


# --- the race ---------------------------------------------------------------------------------------------------------


def best_step(problem: NonNegativeFactorization, sweep: Sweep, last_error: Callable[[float], float]) -> float:
    """Return the step of the grid with the least error; none is tried beyond one that is worse than its predecessor."""
    tried: list[tuple[float, float]] = []
    for multiple in STEPS[sweep]:
        tried.append((last_error(multiple / problem.smoothness), multiple / problem.smoothness))
        if not tried[-1] <= min(tried):
            break
    return min(tried)[1]


def time_to(target: float, seconds: np.ndarray, errors: np.ndarray) -> float:
    """Return the seconds to the target, the logarithm of the error taken to be linear between two points."""
    place = int(np.argmax(errors <= target))
    if place == 0:
        return float(seconds[0]) if errors[0] <= target else math.nan
    ends = np.log(errors[place - 1 : place + 1])
    share = (ends[0] - math.log(target)) / (ends[0] - ends[1])
    return float(seconds[place - 1] + share * (seconds[place] - seconds[place - 1]))


def _reached(runs: list[Curve]) -> float:
    """Return the least error that every round has come to."""
    return float(max(errors.min() for _, errors in runs))


def _iteration(run: Curve) -> float:
    """Return the usual seconds from one error to the next."""
    return float(np.median(np.diff(run[0])))


def _last_error(trace: Trace, problem: NonNegativeFactorization, sweep: Sweep, step: float) -> float:
    return float(replayed(trace, problem, seacd(step, sweep), 1)[1][-1])


def race(problem: NonNegativeFactorization, budget: float, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what was measured at one rank."""
    x, both = problem.initial(0, 0), problem.value_and_gradient
    ways: dict[str, Both] = {"as the problem does": both, "residual": partial(shared_residual, problem)}
    with threadpool_limits(1, "blas"):
        each = take_turns({name: partial(way, x) for name, way in ways.items()}, 5)
        passes = int(np.clip(budget / each["as the problem does"], 20, 5000))
        trial = max(15, int(TRIAL * passes))
        trace = in_turns(trial)
        best = {"gd": best_step(problem, "jacobi", lambda step: descend(both, x, step, trial)[1][-1])}
        for sweep in get_args(Sweep):
            best[sweep] = best_step(problem, sweep, partial(_last_error, trace, problem, sweep))
    multiples = {name: step * problem.smoothness for name, step in best.items()}
    say(f"{passes} passes; best steps " + ", ".join(f"{name} {of:.3g}/L" for name, of in multiples.items()))
    same = min(best["gd"], best["jacobi"])
    runs: dict[tuple[str, float], list[Curve]] = {}
    busy, two_threads = [], []
    for number in range(rounds):
        for step in {same, best["gd"]}:
            used = time.process_time(), time.perf_counter()
            with threadpool_limits(1, "blas"):
                runs.setdefault(("gd", step), []).append(descend(both, x, step, passes))
            busy.append((time.process_time() - used[0]) / (time.perf_counter() - used[1]))
        for step in {same, best["jacobi"]}:
            runs.setdefault(("jacobi", step), []).append(recorded(problem, seacd(step), passes))
        sweep = "gauss_seidel"
        runs.setdefault((sweep, best[sweep]), []).append(recorded(problem, seacd(best[sweep], sweep), passes))
        with threadpool_limits(2, "blas"):
            two_threads.append(_iteration(descend(both, x, best["gd"], max(10, passes // 2))))
        say(f"round {number + 1} of {rounds}")
    # A step that was best for few passes may be too long for many.
    for name in "gd", "jacobi":
        best[name] = min((step for kind, step in runs if kind == name), key=lambda step: _reached(runs[name, step]))
    # The error that all of them have reached; that of the candidates' own best steps is one for all.
    own = max(_reached(runs[name, best[name]]) for name in best)
    shared = max(_reached(runs[name, same]) for name in ("gd", "jacobi"))
    with threadpool_limits(1):
        cd = by_scikit_learn(problem, x, own, budget)
    say("scikit-learn")

    def seconds(target: float, name: str, step: float) -> list[float]:
        return [time_to(target, *run) for run in runs[name, step]]

    descents = runs["gd", best["gd"]]
    iterations = [_iteration(run) for run in descents]
    to_own = seconds(own, "gd", best["gd"])
    two = [took * two / one for took, two, one in zip(to_own, two_threads, iterations, strict=True)]
    own_times = {name: seconds(own, kind, best[kind]) for name, kind in OWN.items()}
    iteration = 1e3 * float(np.median(iterations))
    return {
        "passes": passes,
        "steps": {name: step * problem.smoothness for name, step in best.items()} | {"same": same * problem.smoothness},
        "same": {"error": shared, "gd": seconds(shared, "gd", same), "seacd": seconds(shared, "jacobi", same)},
        "own": {"error": own, **own_times, "two_threads": two, "scikit_learn": cd},
        "busy": min(busy),
        "milliseconds": {
            "iteration": iteration,
            "residual": iteration * each["residual"] / each["as the problem does"],
            "seacd": 1e3 * float(np.median([run[0][-1] for run in runs["jacobi", same]])) / passes,
            "sequence": 1e3 * float(np.median([run[0][-1] for run in runs[sweep, best[sweep]]])) / passes,
        },
    }


def beside(problem: NonNegativeFactorization) -> dict[str, Any]:
    """Return what is not raced: operations, and processor time beside gradients and of passes."""
    return {"work": work(problem), "costs": costs(problem, 3), "sweeps": sweeps(problem, 3)}


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--quick", is_flag=True, help="Two ranks and short runs; writes nothing.")
@click.option("--costs", "only_costs", is_flag=True, help="Nothing in wall time: writes the other sections anew.")
def main(file: str | None, quick: bool, only_costs: bool) -> None:
    """Factor a photograph (FILE, or one of scikit-learn's), and write factorization.md and factorization.png."""
    keep_freed_memory()  # as SEACD's workers do
    partial_results = Path(tempfile.gettempdir(), "asyncsim-factorization.json")
    with tempfile.TemporaryDirectory() as folder:
        path = photograph(file, folder)
        shown = "scikit-learn's photograph of a Chinese temple, enlarged" if file is None else f"`{Path(file).name}`"
        key = [hashlib.sha256(Path(path).read_bytes()).hexdigest(), commit(), SECONDS, ROUNDS]
        known = json.loads(partial_results.read_text()) if partial_results.exists() and not quick else {}
        results = (
            {int(rank): found for rank, found in known.get("results", {}).items()} if known.get("key") == key else {}
        )
        if only_costs:
            results = {rank: beside(NonNegativeFactorization(photograph=path, rank=rank)) for rank in RANKS}
            text = with_costs((HERE / "factorization.md").read_text(encoding="utf-8"), results)
            (HERE / "factorization.md").write_text(text, encoding="utf-8")
            return
        for rank in QUICK_RANKS if quick else RANKS:
            if rank in results:
                continue  # done before the run was cut off
            begin = time.perf_counter()

            def say(what: str, rank: int = rank, begin: float = begin) -> None:
                click.echo(f"rank {rank:>3}, {time.perf_counter() - begin:5.1f} s: {what}")

            problem = NonNegativeFactorization(photograph=path, rank=rank)
            found = race(problem, *((QUICK_SECONDS, QUICK_ROUNDS) if quick else (SECONDS, ROUNDS)), say)
            found |= beside(problem)
            say("costs")
            results[rank] = found
            if not quick:
                partial_results.write_text(json.dumps({"key": key, "results": results}))
        text = report(results, f"The picture is {shown}", SECONDS)
        click.echo(text)
        if quick:
            return
        (HERE / "factorization.md").write_text(text, encoding="utf-8")
        draw(results, HERE / "factorization.png")
        partial_results.unlink()


if __name__ == "__main__":
    main()

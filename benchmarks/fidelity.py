"""Does a calibrated simulation predict a real run? `python benchmarks/fidelity.py`, or a first look with `--quick`.

Real runs are recorded first, one after the other, while nothing else should run on the machine; their traces lie in
runs/fidelity/COMMIT, so that an interrupted start goes on where it was. Then each is predicted from another one: a
cluster calibrated on a run with one seed is simulated, with the number of workers of a run with another seed, and held
against that one. So is, as a control, one more real run like it: no prediction can be asked to be nearer. Figures go to
fidelity.csv and fidelity.png beside this file as they come, the tables into docs/fidelity.md.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import click  # noqa: E402
import numpy as np  # noqa: E402
from timing import ROOT, commit, machine  # noqa: E402

import asyncsim  # noqa: E402
from asyncsim.allocator import keep_freed_memory  # noqa: E402
from asyncsim.cluster import Cluster  # noqa: E402
from asyncsim.figures import COLOURS, GREY, finish, new_figure, save  # noqa: E402
from asyncsim.noise import Difference, trace_differences  # noqa: E402
from asyncsim.problems import LeastSquares, Quadratic, TanhNetwork  # noqa: E402
from asyncsim.results import read_trace, write_trace  # noqa: E402
from asyncsim.scenario import Scenario, build  # noqa: E402
from asyncsim.streams import SERVICE  # noqa: E402
from asyncsim.trace import Trace  # noqa: E402

DOCUMENT, FIGURES, PICTURE = ROOT / "docs" / "fidelity.md", HERE / "fidelity.csv", HERE / "fidelity.png"
BEGIN, END = "<!-- made by benchmarks/fidelity.py -->", "<!-- end -->"

#: Throughput that is off by no more than this is right, and staleness within what chance exceeds once in 20 times.
RATE, CONFIDENCE = 0.03, 0.95
#: Updates per worker left out at the beginning, when all workers have just started together.
WARMUP = 20
#: A simulation is so many times as long as the run that it predicts: its own noise hardly counts.
LONGER = 20
#: A run that takes this many times as long as planned ends there.
PATIENCE = 4.0

#: What workers do who only wait, who compute (about 4 ms) in a core's own cache or (2 ms) on 19 MB of data, which pass
#: through memory that the cores share among them and with others' machines, and who hardly compute (20 microseconds).
PROBLEMS = {
    "waits": Quadratic(dimension=10, condition_number=10.0),
    "computes": TanhNetwork(hidden=256, batch=1024),
    "streams": LeastSquares(samples=6000, dimension=400, condition_number=10.0),
    "tiny": LeastSquares(samples=400, dimension=100, condition_number=10.0),
}
EXPONENTIAL = {"law": "exponential", "mean": 8.0}
STEADY = {"law": "gamma", "shape": 4.0, "mean": 8.0}
FAST = {"law": "exponential", "mean": 2.0}
#: For workers that do not wait no law is used.
NO_LAW = {"law": "constant", "value": 0.0}


class Case(NamedTuple):
    """What is predicted from what: `updates` of a run for each worker in it, and how often it is done again."""

    group: str
    backend: str
    work: str
    law: dict[str, Any]
    calibrated: int
    predicted: int
    updates: int
    repetitions: int

    @property
    def name(self) -> str:
        """What the workers do, in words."""
        if self.work != "waits":
            return {"computes": "compute 4 ms", "streams": "compute 2 ms on 19 MB", "tiny": "compute 20 µs"}[self.work]
        return f"wait: {self.law['law']}, {self.law['mean']:g} ms"


def cases() -> list[Case]:
    """Return what is tried, in the order of the tables."""
    found = []
    for backend in ("threads", "queue", "shared_memory", "mpi", "manager"):
        for law, updates, repetitions in ((EXPONENTIAL, 360, 5), (STEADY, 260, 3)):
            found += [Case("waiting", backend, "waits", law, 4, workers, updates, repetitions) for workers in (4, 16)]
    for group, work in (("computing", "computes"), ("memory", "streams")):
        for backend in ("threads", "queue", "shared_memory"):
            for pair in ((1, 1), (2, 2), (1, 2)):
                found.append(Case(group, backend, work, NO_LAW, *pair, 600, 5))
    for backend in ("threads", "queue", "shared_memory"):
        for pair in ((2, 6), (6, 6)):
            found.append(Case("more workers than cores", backend, "computes", NO_LAW, *pair, 600, 3))
        found += [Case("tiny gradients", backend, "tiny", NO_LAW, *pair, 4000, 3) for pair in ((1, 2), (2, 2))]
    found += [Case("a busy server", "manager", "waits", FAST, 4, workers, 400, 3) for workers in (4, 16)]
    return found


GROUPS = {
    "waiting": "Waiting workers",
    "computing": "Computing workers, no more than cores",
    "memory": "Computing workers, no more than cores, whose data do not fit into the cache",
    "more workers than cores": "More computing workers than cores",
    "tiny gradients": "Tiny gradients",
    "a busy server": "A server that is always busy",
}

# --- recording ----------------------------------------------------------------------------------------------------


def scenario(case: Case, workers: int, repetition: int) -> Scenario:
    """Return the real run of a repetition with this number of workers; runs that share nothing have other seeds."""
    updates = case.updates * (workers if case.work != "waits" else max(case.calibrated, workers // 2))
    run: dict[str, Any] = {"source": "record", "backend": case.backend, "updates": updates}
    if case.work == "waits":
        run["wait"] = "sleep"
        run["time"] = PATIENCE * updates * case.law["mean"] / workers
    return build(
        {
            "seed": 1 + repetition + 1000 * workers,
            "cluster": {"time_unit": "ms", "workers": [{"count": workers, "service": case.law}]},
            "problem": PROBLEMS[case.work],
            "method": {"kind": "sgd", "step": 1e-3},
            "run": run,
        }
    )


def file_of(case: Case, workers: int, repetition: int, folder: Path) -> Path:
    """Return where the trace of a real run lies; cases that need the same run share it."""
    law = "-".join(map(str, case.law.values())) if case.work == "waits" else case.work
    return folder / f"{case.backend}_{law}_{case.updates}_{workers}_{repetition}.parquet"


def record_all(chosen: list[Case], folder: Path) -> Iterator[float]:
    """Record every run that is not there yet; yield the share of the machine that others used meanwhile."""
    wanted = {}
    for repetition in range(max(case.repetitions for case in chosen)):
        for case in chosen:
            for workers in (case.calibrated, case.predicted):
                if repetition < max(case.repetitions, 2):
                    wanted.setdefault(file_of(case, workers, repetition, folder), (case, workers, repetition))
    for number, (path, (case, workers, repetition)) in enumerate(wanted.items(), 1):
        said = f"{number}/{len(wanted)} {case.backend}, {workers} workers {case.name}, repetition {repetition + 1}"
        if path.is_file():
            click.echo(f"{said}: there already")
            continue
        begin, before = time.monotonic(), _cores_used()
        try:
            recording = asyncsim.record(scenario(case, workers, repetition))
            write_trace(recording.trace, path)
            how = f"{int(recording.trace.updates.sum()):,} updates"
            if recording.ended is not None:
                how += f", ended: {recording.ended}"
        except Exception as error:  # what fails is said in the table
            how = f"FAILED: {type(error).__name__}: {error}"
            path.with_suffix(".failed").write_text(how, encoding="utf-8")
        seconds = time.monotonic() - begin
        used, ours = (after - was for after, was in zip(_cores_used(), before, strict=True))
        others = max(used - ours, 0.0) / seconds / (os.cpu_count() or 1)
        click.echo(f"{said}: {how} in {seconds:.1f} s, others used {others:.0%} of the machine")
        yield others


def _cores_used() -> tuple[float, float]:
    """Return the seconds of processor time that all of the machine has used so far, and that this program has."""
    ours = sum(os.times()[:4])
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return ours, ours
    busy = sum(fields) - fields[3] - fields[4]  # all but idle and waiting for disks
    return busy / os.sysconf("SC_CLK_TCK"), ours


# --- predicting ---------------------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """One prediction held against one real run, and another real run held against it: the control.

    Throughput is that of the prediction, or of the control, over that of the real run; times are in ms.
    """

    group: str
    backend: str
    work: str
    calibrated: int
    predicted: int
    repetition: int
    updates: int = 0
    staleness: float = np.nan
    total_variation: float = np.nan
    total_variation_band: float = np.nan
    throughput: float = np.nan
    throughput_equal_times: float = np.nan
    throughput_band: float = np.nan
    control_total_variation: float = np.nan
    control_total_variation_band: float = np.nan
    control_throughput: float = np.nan
    control_throughput_equal_times: float = np.nan
    shares: float = np.nan
    shares_band: float = np.nan
    server_busy: float = np.nan
    late_calibrated: float = np.nan
    late_predicted: float = np.nan
    failed: str = ""


def predict_all(chosen: list[Case], folder: Path) -> Iterator[Figures]:
    """Yield the figures of every case and repetition; a failure is one of them."""
    for case in chosen:
        for repetition in range(case.repetitions):
            about = (case.group, case.backend, case.name, case.calibrated, case.predicted, repetition + 1)
            try:
                yield Figures(*about, **_predicted(case, repetition, folder))  # type: ignore[arg-type]
            except Exception as error:
                failed = [path.with_suffix(".failed") for path in _files(case, repetition, folder)]
                said = next((path.read_text(encoding="utf-8") for path in failed if path.is_file()), repr(error))
                yield Figures(*about, failed=" ".join(said.split())[:200])


def _files(case: Case, repetition: int, folder: Path) -> list[Path]:
    """Return the run to calibrate on, the one to predict, and another with as many workers as that.

    With as many workers as were calibrated on, it is that of the next repetition that is predicted.
    """
    following = (repetition + 1) % max(case.repetitions, 2)
    same = case.calibrated == case.predicted
    return [
        file_of(case, case.calibrated, repetition, folder),
        file_of(case, case.predicted, following if same else repetition, folder),
        file_of(case, case.predicted, repetition if same else following, folder),
    ]


@cache
def _calibrated(path: Path) -> Cluster:
    trace = read_trace(path)
    return asyncsim.calibrate(trace, warmup=WARMUP * trace.workers, time_unit="ms").cluster


def _predicted(case: Case, repetition: int, folder: Path) -> dict[str, Any]:
    """Return the figures of one prediction."""
    paths = _files(case, repetition, folder)
    known, real, control = (read_trace(path) for path in paths)
    cluster = scaled(_calibrated(paths[0]), case.predicted)
    warmup = WARMUP * case.predicted
    updates = int(real.updates[0])
    simulated = asyncsim.simulate(
        build(
            {
                "seed": 10_000 + repetition,
                "cluster": cluster,
                "run": {"updates": LONGER * (updates - warmup) + warmup},
            }
        )
    )
    found = trace_differences(real, simulated, warmup=warmup)
    likewise = trace_differences(real, control, warmup=warmup)
    distance, rate, shares = found["total_variation"], found["throughput"], found["shares"]
    times, late = np.transpose([_times(case, trace) for trace in (known, real, control)]).tolist()

    def equal_times(rate: Difference, there: float) -> float:
        """Return the ratio of rates had the mean time been that of the real run: M / rate is the mean of a cycle."""
        return case.predicted / (case.predicted / rate.b + times[1] - there) / rate.a

    return {
        "updates": updates - warmup,
        "staleness": float(real.staleness(warmup=warmup).mean()),
        "total_variation": distance.distance,
        "total_variation_band": distance.band(CONFIDENCE),
        "throughput": rate.b / rate.a,
        "throughput_equal_times": equal_times(rate, times[0]),
        "throughput_band": rate.band(CONFIDENCE),
        "control_total_variation": likewise["total_variation"].distance,
        "control_total_variation_band": likewise["total_variation"].band(CONFIDENCE),
        "control_throughput": likewise["throughput"].b / likewise["throughput"].a,
        "control_throughput_equal_times": equal_times(likewise["throughput"], times[2]),
        "shares": shares.distance,
        "shares_band": shares.band(CONFIDENCE),
        "server_busy": cluster.server.service.mean * rate.a,
        "late_calibrated": late[0],
        "late_predicted": late[1],
    }


def scaled(cluster: Cluster, workers: int) -> Cluster:
    """Return the cluster with another number of workers, each group with the same share of them."""
    groups = [(group.count * workers, group) for group in cluster.workers]
    counts = [count // cluster.size for count, _ in groups]
    for place in np.argsort([-(count % cluster.size) for count, _ in groups])[: workers - sum(counts)]:
        counts[place] += 1  # those with the largest remainders
    kept = [
        group.model_copy(update={"count": count}) for count, (_, group) in zip(counts, groups, strict=True) if count > 0
    ]
    return Cluster(time_unit=cluster.time_unit, workers=tuple(kept), server=cluster.server, network=cluster.network)


def _times(case: Case, trace: Trace) -> tuple[float, float]:
    """Return the mean time that workers were to wait, and by how much longer it took; or that they have computed."""
    used = trace["read_version"] >= WARMUP * trace.workers
    took = trace["done_time"] - trace["start_time"]
    if case.work != "waits":
        return float(took[used].mean()), np.nan
    cluster = build({"cluster": {"workers": [{"service": case.law}]}, "run": {"updates": 1}}).cluster
    assert cluster is not None
    drawn = np.empty(len(trace))
    for worker in range(trace.workers):
        mine = trace["worker"] == worker
        size = int(trace["draw"][mine].max(initial=0)) + 1
        samples = cluster.laws[0].sample(trace.seed, 0, worker, 0, size=size, purpose=SERVICE)
        drawn[mine] = samples[trace["draw"][mine]]
    return float(drawn[used].mean()), float((took - drawn)[used].mean())


# --- what comes of it ---------------------------------------------------------------------------------------------

HEAD = (
    "| backend | workers | calibrated → predicted | total variation | chance, 95 % | a real run's | within | "
    "throughput | within 3 % | with equal times | within 3 % | shares within | server busy | late by, ms |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def table(rows: Iterable[Figures]) -> str:
    """Return the medians of each case's repetitions as tables in Markdown, one for each group."""
    cells: dict[tuple[Any, ...], list[Figures]] = {}
    for row in rows:
        cells.setdefault(row[:5], []).append(row)
    parts = []
    for group, title in GROUPS.items():
        lines = [_line(key, mine) for key, mine in cells.items() if key[0] == group]
        if lines:
            parts.append("\n".join([f"### {title}", "", HEAD, *lines]))
    return "\n\n".join(parts)


def _line(key: tuple[Any, ...], rows: list[Figures]) -> str:
    _, backend, work, calibrated, predicted = key
    start = f"| {backend} | {work} | {calibrated} → {predicted} |"
    good = [row for row in rows if not row.failed]
    if not good:
        return f"{start} failed: {rows[0].failed} |" + " |" * 10
    n = len(rows)
    right, control = _right_ones(good), _right_ones(good, control=True)
    shares = sum(_within(row.shares, row.shares_band) for row in good)

    def median(name: str) -> float:
        return statistics.median(getattr(row, name) for row in good)

    def spread(name: str) -> str:
        errors = [getattr(row, name) - 1 for row in good]
        return f"{statistics.median(errors):+.1%} ({min(errors):+.1%} … {max(errors):+.1%})"

    def held(what: str) -> str:
        return f"{getattr(right, what)} of {n} ({getattr(control, what)})"

    late = f"{median('late_calibrated'):.2f} → {median('late_predicted'):.2f}"
    return (
        f"{start} {median('total_variation'):.3f} | {median('total_variation_band'):.3f} "
        f"| {median('control_total_variation'):.3f} | {held('staleness')} "
        f"| {spread('throughput')} | {held('throughput')} "
        f"| {spread('throughput_equal_times')} | {held('equal_times')} "
        f"| {shares} of {n} | {median('server_busy'):.0%} | {'' if 'nan' in late else late} |"
    )


class Right(NamedTuple):
    """How many of some predictions, or of their controls, are right."""

    staleness: int
    throughput: int
    equal_times: int


def _right_ones(rows: list[Figures], *, control: bool = False) -> Right:
    start = "control_" if control else ""

    def values(name: str) -> list[float]:
        return [getattr(row, start + name) for row in rows]

    return Right(
        sum(map(_within, values("total_variation"), values("total_variation_band"))),
        *(sum(abs(ratio - 1) <= RATE for ratio in values(f"throughput{how}")) for how in ("", "_equal_times")),
    )


def _within(distance: float, band: float) -> bool:
    return bool(distance <= band + 1e-12)


def summary(rows: list[Figures]) -> str:
    """Say in a line for each group how many predictions were right, and how many controls."""
    lines = []
    for group, title in GROUPS.items():
        mine = [row for row in rows if row.group == group]
        if mine:
            right, control = _right_ones(mine), _right_ones(mine, control=True)
            lines.append(
                f"- {title}: staleness within the band in {right.staleness} of {len(mine)} (of other real runs "
                f"{control.staleness}), throughput within 3 % in {right.throughput} ({control.throughput}), with equal "
                f"times in {right.equal_times} ({control.equal_times})."
            )
    return "\n".join(lines)


#: Where the axis of staleness begins in the picture; what is closer is drawn there.
LEFT = 0.2


def draw(rows: list[Figures], path: Path) -> None:
    """Draw each prediction: how far staleness is off over what chance exceeds once in 20 times, and throughput."""
    figure, ax = new_figure()
    ax.fill_between([LEFT, 1], -RATE, RATE, color="#DDDDDD", linewidth=0, zorder=0)
    ax.text(1.05 * LEFT, 0, "right", color=GREY, va="center")
    for colour, (group, title) in zip(COLOURS, GROUPS.items(), strict=False):
        mine = [row for row in rows if row.group == group and not row.failed and row.predicted > 1]
        if mine:
            ax.plot([], [], "o", color=colour, label=title)
        for row in mine:
            distance = max(row.total_variation / row.total_variation_band, LEFT)
            marker = "o" if row.calibrated == row.predicted else "^"
            ax.plot(
                distance,
                row.throughput_equal_times - 1,
                marker,
                color=colour,
                markersize=5,
                alpha=0.7,
                markeredgewidth=0,
            )
    ax.plot([], [], "o", color=GREY, label="predicted: as many workers")
    ax.plot([], [], "^", color=GREY, label="predicted: more workers")
    ax.set_xscale("log")
    ax.set_xlim(left=LEFT)
    beyond = (0.2, 0.5, 1, 2, 5, 10, 20)
    ax.set_xticks(beyond, [f"{value:g}" for value in beyond])
    ax.set_yscale("symlog", linthresh=0.1, linscale=1.5)
    ticks = (-0.5, -0.1, -0.03, 0, 0.03, 0.1, 0.5, 1, 2, 5)
    ax.set_yticks(ticks, [f"{tick:+.0%}" if tick else "0" for tick in ticks])
    ax.minorticks_off()
    finish(
        ax, "staleness: total variation over the 95 % band of chance", "throughput with equal times: prediction off by"
    )
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save(figure, path)


def write(rows: list[Figures], head: str) -> None:
    """Put the tables into docs/fidelity.md, between its markers."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = f"{head}\n\n{summary(rows)}\n\n{table(rows)}"
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")


@click.command()
@click.option("--quick", is_flag=True, help="Short runs, two repetitions, few cases; writes nothing into the project.")
@click.option("--only", default="", help="Only cases whose backend, group or work contains this; writes nothing.")
@click.option("--fresh", is_flag=True, help="Record anew what an earlier start at this commit has recorded.")
def main(quick: bool, only: str, fresh: bool) -> None:
    """Record, calibrate, predict, compare; print the tables and write them."""
    keep_freed_memory()  # as the command does
    measured_at = commit()
    folder = ROOT / "runs" / "fidelity" / (measured_at.replace(" ", "-") + "-quick" * quick)
    folder.mkdir(parents=True, exist_ok=True)
    if fresh:
        for path in folder.iterdir():
            path.unlink()
    chosen = [case for case in cases() if any(only in text for text in (case.backend, case.group, case.name))]
    if quick:
        chosen = [case._replace(updates=case.updates // 2, repetitions=2) for case in chosen if case.law != STEADY]
    begin = time.monotonic()
    others = list(record_all(chosen, folder))
    click.echo(f"recorded in {time.monotonic() - begin:.0f} s")
    rows: list[Figures] = []
    figures = folder / "fidelity.csv" if quick or only else FIGURES
    with figures.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Figures._fields)
        for row in predict_all(chosen, folder):
            rows.append(row)
            writer.writerow([f"{value:.5g}" if isinstance(value, float) else value for value in row])
            file.flush()
    click.echo(f"{table(rows)}\n\n{summary(rows)}\n\n{time.monotonic() - begin:.0f} s in all")
    noise = folder / "others.txt"  # the machine's other work, kept for a start that goes on
    with noise.open("a", encoding="utf-8") as file:
        file.writelines(f"{share:.4f}\n" for share in others)
    shares = [float(line) for line in noise.read_text(encoding="utf-8").split()]
    said = f"other programs used {statistics.median(shares):.1%} of the machine in the median run" if shares else ""
    head = f"Made by `python benchmarks/fidelity.py` at commit {measured_at} on {machine()}; {said}."
    click.echo(head)
    draw(rows, folder / "fidelity.png" if quick or only else PICTURE)
    if not (quick or only):
        write(rows, head)


if __name__ == "__main__":
    main()

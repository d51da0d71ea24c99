"""Measure how fast asyncsim is: `python benchmarks/run.py`, or a minute's look with `--quick`.

What is compared runs in this one process, in turns; see timing.py. A table is printed. The full run also writes
results.md and results.png beside this file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import click  # noqa: E402
import replaying  # noqa: E402
import simulation  # noqa: E402
import starting  # noqa: E402
from table import Line, markdown, text  # noqa: E402
from timing import commit, machine  # noqa: E402

from asyncsim.figures import COLOURS, finish, new_figure, save  # noqa: E402

NAMES = {"hand": "SimPy loop written by hand", "simpy": "SimPy model", "compiled": "compiled engine"}

REPORT = """# Benchmarks

Made by `python benchmarks/run.py` at commit {commit} on {machine}.

Times are processor time (`time.process_time`) of one process in which the candidates take turns; ratios are of medians.
What is run is described in `simulation.py`, `replaying.py` and `starting.py`; the loops compared with are
`hand_written.py`, `cumulative_sums.py` and the one in `replaying.py`. All engines return the same ten columns of each
gradient; asyncsim's times include laying out the cluster and checking the trace. Against the loop written by hand, runs
have 50 gradients a worker, at least 100,000; for the growth with M they have 10 a worker, at least 20,000 in Python and
1,000,000 compiled. README.md says where the time goes where a target is missed.

{table}

## Cost of a gradient

Exponential workers, a link of constant latency each, a server queue, in nanoseconds.

{growth}

![Cost of a gradient against the number of workers](results.png)

## Installed read-only

Seconds of the first simulation in two processes, one after the other, of a package that cannot be written to, with

{read_only}
"""


@click.command()
@click.option("--quick", is_flag=True, help="Smaller and fewer runs; writes nothing.")
def main(quick: bool) -> None:
    """Measure, print the table, and write results.md and results.png."""
    lines: list[Line] = []

    def show(measured: Iterator[Line]) -> None:
        for line in measured:
            lines.append(line)
            click.echo(text(line))

    measured_at = commit()
    click.echo(f"{measured_at} on {machine()}")
    for part in (simulation.against_hand_written, simulation.shared_cable, simulation.against_numpy):
        show(part(quick))
    points = simulation.growth(quick)
    show(simulation.of_growth(points))
    show(simulation.memory(quick, str(HERE)))
    for part in (replaying.many_replicas, replaying.one_large_model, starting.first_call):
        show(part(quick))
    read_only = list(starting.read_only_install())
    click.echo("\n".join(f"installed read-only, {line}" for line in read_only))
    if quick:
        return
    report = REPORT.format(
        commit=measured_at,
        machine=machine(),
        table=markdown(lines),
        growth=growth_table(points),
        read_only="\n".join(f"- {line}" for line in read_only),
    )
    (HERE / "results.md").write_text(report, encoding="utf-8")
    draw(points, HERE / "results.png")


def growth_table(points: list[tuple[str, int, float]]) -> str:
    """Return the costs as a table in Markdown: a row for each number of workers."""
    cost = {(way, workers): ns for way, workers, ns in points}
    rows = [f"| workers | {' | '.join(NAMES.values())} |", "|---:" * (1 + len(NAMES)) + "|"]
    for workers in sorted({workers for _, workers, _ in points}):
        shown = [f"{cost[way, workers]:,.0f}" if (way, workers) in cost else "" for way in NAMES]
        rows.append(f"| {workers:,} | {' | '.join(shown)} |")
    return "\n".join(rows)


def draw(points: list[tuple[str, int, float]], path: Path) -> None:
    """Draw the cost of a gradient against the number of workers."""
    figure, ax = new_figure()
    for colour, (way, name) in zip(COLOURS, NAMES.items(), strict=False):
        mine = [(workers, ns / 1000) for this, workers, ns in points if this == way]
        ax.plot(*zip(*mine, strict=True), color=colour, marker="o", markersize=5, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    finish(ax, "workers $M$", "processor time of a gradient (µs)")
    save(figure, path)


if __name__ == "__main__":
    main()

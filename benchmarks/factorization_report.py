"""The tables and the picture of `factorization.py`."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from factorization_costs import DESCENT, WORKERS
from timing import commit, machine

from asyncsim.figures import COLOURS, GREY, finish, new_figure, save

HEAD = """# Factorizing a photograph: SEACD in parallel, gradient descent, scikit-learn

Wall times made by `python benchmarks/factorization.py` at commit {commit} on {machine}.

{picture}. What is compared, and how, is said at the head of `factorization.py`.
"""

#: The sections of the report, those that were raced in wall time first.
RACED = """## Wall time to the same mean squared error

Seconds to the error in the second column, medians of {rounds} rounds in which all take turns. GD: projected gradient
descent, one thread, in the way that takes fewer operations. "times": how many times longer it took than SEACD, the
median of the rounds (and the least and the greatest). "busy" is the least share of gradient descent's wall time in
which it ran; where it is not near 1, the machine was not quiet, and the row says little.

Both with one step:

{same}

Each with its own best step; (iterations) of scikit-learn, "> {limit:g}" where it was not there within so many seconds:

{own}

Steps, in units of 1/L, L = 14σ₁/mn:

{steps}

Milliseconds of wall time of an iteration of gradient descent as raced, the same through the residual (in the ratio of
processor times), and two updates of the running workers, gradients or passes in sequence:

{walls}

![How many times faster SEACD was](factorization.png)
"""

COMPUTED = """## Work

This and what follows: at commit {commit} on {machine}.

10⁹ floating-point operations of an iteration of gradient descent, through Gram matrices or through one residual that
both factors share, and of SEACD's two blocks, the factors, which share nothing. "at most" is the ratio of gradient
descent's lesser to the larger block's: about so many times faster can two workers be where a pass of either brings as
much, and nothing but gradients takes time.

{works}

## What SEACD does beside gradients

Milliseconds of processor time, and percent of a GACD pass of {descent} updates. "at its end": the energy that is
evaluated once in a pass; where that has n updates, the share is {descent}/n times this. All else is done in every
update. "every energy": what it takes more that each gradient tells f, and so the energy, of the version that it is
computed from, as a replay that records the energy asks it to. "recording": what a real run writes down.

{costs}

## Coordinate-sequential passes

Nanoseconds of processor time for each coordinate of a block: the compiled pass, of which "gradient alone" is the block
gradient that it starts from; the same loop run by Python, without that gradient; and one block gradient for each
coordinate, which is how a pass is defined.

{sweeps}
"""


def table(head: str, rows: list[list[Any]]) -> str:
    """Return a table in Markdown; numbers get three digits."""
    names = head.split(" | ")
    lines = [f"| {head} |", "|---:" * len(names) + "|"]
    for row in rows:
        lines.append(
            "| " + " | ".join(f"{entry:.3g}" if isinstance(entry, float) else str(entry) for entry in row) + " |"
        )
    return "\n".join(lines)


def report(results: dict[int, dict[str, Any]], picture: str, limit: float) -> str:
    """Return all sections."""
    about = {"commit": commit(), "machine": machine()}
    rounds = len(next(iter(results.values()))["own"]["gd"])
    raced = RACED.format(limit=limit, rounds=rounds, **_raced(results, limit))
    return "\n".join([HEAD.format(picture=picture, **about), raced, computed(results)])


def with_costs(old: str, results: dict[int, dict[str, Any]]) -> str:
    """Return an earlier report with the sections of operations and of processor time as they are now."""
    return old[: old.index(COMPUTED.partition("\n")[0])] + computed(results)


def _raced(results: dict[int, dict[str, Any]], limit: float) -> dict[str, str]:
    """Return the tables of wall times."""
    rows: dict[str, list[list[Any]]] = {name: [] for name in ("same", "own", "steps", "walls")}
    for rank, found in results.items():
        same, own, wall = found["same"], found["own"], found["milliseconds"]
        cd = own["scikit_learn"]
        learnt = f"> {limit:g}" if cd["seconds"] is None else f"{cd['seconds']:.3g} ({cd['iterations']})"
        both = (median(same[name]) for name in ("gd", "seacd"))
        rows["same"].append([rank, same["error"], *both, _times(same, "seacd"), found["busy"]])
        seacd = median(own["seacd"]), _times(own, "seacd"), median(own["sequence"]), _times(own, "sequence")
        rows["own"].append([rank, own["error"], median(own["gd"]), *seacd, median(own["two_threads"]), learnt])
        rows["steps"].append([rank, *(found["steps"][name] for name in ("same", "gd", "jacobi", "gauss_seidel"))])
        rows["walls"].append([rank, *(wall[name] for name in ("iteration", "residual", "seacd", "sequence"))])
    heads = {
        "same": "rank | error | GD | SEACD | times | busy",
        "own": "rank | error | GD | SEACD | times | in sequence | times | GD, 2 threads | scikit-learn",
        "steps": "rank | same | GD | SEACD | in sequence",
        "walls": "rank | GD | by residual | 2 updates | in sequence",
    }
    return {name: table(head, rows[name]) for name, head in heads.items()}


def computed(results: dict[int, dict[str, Any]]) -> str:
    """Return the sections of operations and of processor time."""
    rows: dict[str, list[list[Any]]] = {name: [] for name in ("works", "costs", "sweeps")}
    for rank, found in results.items():
        ops, cost = found["work"], found["costs"]
        blocks = " + ".join(f"{part:.3g}" for part in ops["blocks"])
        rows["works"].append([rank, ops["gram"], ops["residual"], blocks, at_most(ops)])
        gacd = DESCENT / WORKERS * cost["pass"]
        each = {name: 1 if name == "energy" else DESCENT for name in cost}
        shown = (f"{cost[name]:.3g} ({100 * each[name] * cost[name] / gacd:.2g} %)" for name in list(cost)[1:])
        rows["costs"].append([rank, cost["pass"], *shown])
        names = "compiled", "gradient alone", "python", "definition"
        rows["sweeps"].append([rank, *(found["sweeps"][name] for name in names)])
    heads = {
        "works": "rank | Gram | residual | two blocks | at most",
        "costs": "rank | both gradients | every energy | at its end | recording | kept state | update itself | copies",
        "sweeps": "rank | compiled | gradient alone | the loop in Python | definition",
    }
    tables = {name: table(head, rows[name]) for name, head in heads.items()}
    return COMPUTED.format(commit=commit(), machine=machine(), descent=DESCENT, **tables)


def ratios(found: dict[str, Any], name: str) -> list[float]:
    """Return how many times longer gradient descent took, in each round."""
    return [slow / fast for slow, fast in zip(found["gd"], found[name], strict=True)]


def _times(found: dict[str, Any], name: str) -> str:
    each = ratios(found, name)
    return f"**{median(each):.2f}**" + (f" ({min(each):.2f}–{max(each):.2f})" if len(each) > 1 else "")


def at_most(ops: dict[str, Any]) -> float:
    """Return how many times less work the larger block is than an iteration of gradient descent."""
    return float(min(ops["gram"], ops["residual"]) / max(ops["blocks"]))


def draw(results: dict[int, dict[str, Any]], path: Path) -> None:
    """Draw how many times faster SEACD was at each rank."""
    figure, ax = new_figure()
    ranks = list(results)
    curves = ("same", "seacd", "same step"), ("own", "seacd", "each its best step"), ("own", "sequence", "in sequence")
    # Where the same step is best for both, one curve lies on the other: the first has the larger marks.
    marks = ("s", 9), ("o", 5), ("o", 5)
    for colour, (part, name, label), (marker, size) in zip(COLOURS, curves, marks, strict=False):
        rounds = [ratios(results[rank][part], name) for rank in ranks]
        middle = [median(each) for each in rounds]
        reach = [[here - min(each) for here, each in zip(middle, rounds, strict=True)]]
        reach += [[max(each) - here for here, each in zip(middle, rounds, strict=True)]]
        ax.errorbar(ranks, middle, reach, color=colour, marker=marker, markersize=size, label=label, capsize=3)
    bound = [at_most(found["work"]) for found in results.values()]
    ax.plot(ranks, bound, color=GREY, linestyle=":", label="gradients alone, by operations")
    ax.axhline(1.5, color=GREY, linewidth=0.8)
    ax.set_xscale("log")
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.minorticks_off()
    ax.set_ylim(bottom=0.0)
    finish(ax, "rank $k$", "times faster than gradient descent")
    save(figure, path)

"""The command line: run, check, plot, replay, compare, export, import-trace, calibrate, schema, list.

Exit codes: 0 done, 1 ran but failed (a run diverged, two runs differ), 2 bad input, 130 interrupted with what was done
kept.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import asyncsim
from asyncsim.allocator import keep_freed_memory

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

#: Failed cells that are named on the terminal.
MOST_FAILURES = 10


class _Commands(click.Group):
    """Turns errors that are the user's to mend into one line and an exit code; others keep their traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except _bad_input() as error:
            if _rank() == 0:  # all ranks of an MPI job were given the same
                click.echo(f"error: {error}", err=True)
            context.exit(BAD_INPUT)
        except _failures() as error:
            click.echo(f"failed: {error}", err=True)
            context.exit(FAILED)
        except BrokenPipeError:
            raise  # the reader of our output has gone; click knows what to do
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            click.echo(f"failed: {what}", err=True)
            context.exit(FAILED)
        except MemoryError:
            click.echo("failed: not enough memory; `asyncsim check` says how much a scenario takes", err=True)
            context.exit(FAILED)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            context.exit(INTERRUPTED)


def _bad_input() -> tuple[type[Exception], ...]:
    """Return the errors that are in what was given; they are imported when something has gone wrong, not before."""
    from asyncsim.executors import ExecutorError
    from asyncsim.results import ResultsError
    from asyncsim.trace import TraceError

    return asyncsim.ScenarioError, ResultsError, TraceError, ExecutorError


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors of a simulation that cannot go on."""
    from asyncsim.durations import SimulationError

    return (SimulationError,)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version=asyncsim.__version__, prog_name="asyncsim")
def main() -> None:
    """A laboratory for asynchronous optimization: simulate a schedule, replay any method on it, compare with theory."""
    keep_freed_memory()


def _overrides(settings: tuple[str, ...], seed: int | None) -> dict[str, Any]:
    """Return what ``--set path=value`` and ``--seed`` ask for."""
    from asyncsim.documents import parse_value

    overrides: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise asyncsim.ScenarioError(f"--set: must read path=value, such as run.updates=500; got '{setting}'")
        overrides[path.strip()] = parse_value(text.strip())
    return overrides if seed is None else {**overrides, "seed": seed}


_set_option = click.option(
    "--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a value: --set run.updates=500 (repeatable)."
)
_seed_option = click.option("--seed", type=int, help="Use another seed.")


def _shard(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Return i and n of ``--shard i/n``."""
    if text is None:
        return None
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise click.BadParameter(f"must read I/N with 1 ≤ I ≤ N, such as 2/8; got '{text}'")
    return int(i), int(n)


@main.command()
@click.argument("file", type=click.Path())
@click.option("--out", type=click.Path(), help="Run directory to write; runs/NAME if left out.")
@_set_option
@_seed_option
@click.option("--force", is_flag=True, help="Overwrite a complete run.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes for a sweep's cells; all cores if left out.")
@click.option("--shard", callback=_shard, metavar="I/N", help="Run the I-th of N parts of a sweep, I = 1, …, N.")
@click.option("--executor", type=click.Choice(["local", "dask"]), default="local", show_default=True)
@click.option("--scheduler", metavar="ADDRESS", help="Dask scheduler to send cells to; a local cluster if left out.")
def run(
    file: str, out: str | None, settings: tuple[str, ...], seed: int | None, force: bool, quiet: bool, **parallel: Any
) -> None:
    """Run a scenario file: trace, replay, summary, pictures.

    A [sweep] runs all its cells, or goes on where it was stopped.
    """
    from asyncsim.report import summary_lines
    from asyncsim.scenario import load

    scenario = load(file, overrides=_overrides(settings, seed))
    folder = Path(out) if out is not None else Path("runs") / scenario.name
    stage = _no_stage if quiet else _stage
    if not parallel["shard"]:
        _fits_the_job(scenario)
    if _rank() > 0 and scenario.run.backend == "mpi":
        _serve_as_rank(scenario, folder, force)
        return
    if scenario.sweep is not None:
        _run_sweep(scenario, folder, file, quiet, stage, force=force, **parallel)
        return
    if parallel["shard"] or parallel["scheduler"] or parallel["executor"] != "local":
        raise asyncsim.ScenarioError(f"{file}: has no [sweep], so there are no cells for --shard or --executor dask")
    from asyncsim.experiment import run as run_scenario
    from asyncsim.results import ended_early
    from asyncsim.sources.recorded.mpi import leave_together

    try:
        result = run_scenario(scenario, folder, force=force, stage=stage)
    except KeyboardInterrupt:
        kept = scenario.run.source == "record" and (folder / "summary.json").exists()
        click.echo(f"interrupted{f'; what happened until then is kept in {folder}' if kept else ''}", err=True)
        sys.exit(INTERRUPTED)
    finally:
        leave_together()  # the other ranks, where a user's own MPI job has recorded
    from asyncsim.pictures import draw_run

    with stage("drawing", None):
        draw_run(result, folder)
    if not quiet:
        click.echo("\n".join(summary_lines(result.summary)))
        click.echo(f"\n{_listing(folder)}")
    ended = ended_early(result.summary)
    if ended is not None:
        click.echo(f"failed: {ended}\nthe run ended early; what happened until then is kept in {folder}", err=True)
        sys.exit(FAILED)
    if result.diverged:
        more = f" ({len(result.diverged)} of {len(result.trace.replicas)} replicas did)" * (len(result.diverged) > 1)
        click.echo(f"failed: {result.diverged[0]}{more}; the run is kept up to there. Try a smaller step", err=True)
        sys.exit(FAILED)


def _rank() -> int:
    """Return the rank of this process in an MPI job, 0 outside of one."""
    from asyncsim.sources.recorded.mpi import place_in_job

    return place_in_job()[0]


def _fits_the_job(scenario: Any) -> None:
    """Refuse to do the same in every rank of an MPI job."""
    from asyncsim.sources.recorded.mpi import place_in_job

    ranks = place_in_job()[1]
    if ranks > 1 and scenario.run.backend != "mpi":
        raise asyncsim.ScenarioError(
            f"an MPI job of {ranks} ranks would make the same run {ranks} times; start it without mpiexec, record on "
            "its ranks with run.backend = 'mpi', or give each rank its part of a sweep with --shard"
        )


def _serve_as_rank(scenario: Any, folder: Path, force: bool) -> None:
    """Work for rank 0 of an MPI job that a user has started; it writes the run, and says what there is to say."""
    from asyncsim.results import refuse_existing
    from asyncsim.sources.recorded import Interrupted
    from asyncsim.sources.recorded.mpi import leave_together

    refuse_existing(folder, force=force)
    with contextlib.suppress(Interrupted, RuntimeError):
        asyncsim.record(scenario)
    leave_together()


def _run_sweep(scenario: Any, folder: Path, file: str, quiet: bool, stage: Any, **settings: Any) -> None:
    from asyncsim.cells import label
    from asyncsim.pictures import draw_sweep
    from asyncsim.report import sweep_lines
    from asyncsim.sweep import run_sweep, state

    try:
        frame = run_sweep(scenario, folder, name=file, stage=stage, **settings)
    except KeyboardInterrupt:
        click.echo(f"interrupted; finished cells are kept. To resume, run the same again with --out {folder}", err=True)
        sys.exit(INTERRUPTED)
    failed, to_come = state(scenario, folder, shard=settings["shard"])
    if len(frame) and not to_come:
        with stage("drawing", None):
            draw_sweep(folder)
    if not quiet:
        if len(frame):
            click.echo("\n".join(sweep_lines(scenario, frame, folder)))
        if to_come:
            click.echo(f"\n{to_come} cells of other shards are still to come")
        click.echo(f"\n{_listing(folder)}")
    for failure in failed[:MOST_FAILURES]:
        values = ", ".join(f"{path} = {label(value)}" for path, value in failure["values"].items())
        click.echo(f"failed: cell {failure['cell']} ({values}): {failure['reason']}", err=True)
    if failed:
        said = "s" * (len(failed) > 1)
        click.echo(f"failed: {len(failed)} cell{said}, tracebacks in {folder}/failed; run again to try again", err=True)
        sys.exit(FAILED)


def _listing(folder: Path) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    return f"{folder}: {', '.join(names)}"


@contextlib.contextmanager
def _no_stage(name: str, total: int | None) -> Iterator[Callable[[int], Any]]:
    yield lambda count: None


@contextlib.contextmanager
def _stage(name: str, total: int | None) -> Iterator[Callable[[int], Any]]:
    """Show a progress bar on the terminal; nothing where standard error is a file."""
    from tqdm import tqdm

    layout = "{desc} {percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]" if total else "{desc} …"
    with tqdm(
        total=total, desc=f"{name:<10}", unit_scale=True, bar_format=layout, file=sys.stderr, disable=None, ncols=78
    ) as bar:
        yield bar.update


@main.command()
@click.argument("file", type=click.Path())
@_set_option
@_seed_option
def check(file: str, settings: tuple[str, ...], seed: int | None) -> None:
    """Check a scenario file, and say how much it would take."""
    from asyncsim.report import check_lines
    from asyncsim.scenario import load

    scenario = load(file, overrides=_overrides(settings, seed))
    click.echo("\n".join(check_lines(scenario, name=file)))


@main.command()
@click.argument("folder", type=click.Path())
def plot(folder: str) -> None:
    """Draw the pictures of a run or a sweep again."""
    from asyncsim.pictures import draw_run, draw_sweep
    from asyncsim.results import open_run

    if (Path(folder) / "results.parquet").is_dir():
        drawn = draw_sweep(Path(folder))
    else:
        drawn = draw_run(open_run(folder), Path(folder))
    for path in drawn:
        click.echo(path)


@main.command()
@click.argument("folder", type=click.Path())
def replay(folder: str) -> None:
    """Replay a run, and check that the bits are the same.

    Of a real run every version is compared, and the first update that differs is named; of a simulated one, the final
    iterates. Exit code 1 where they differ, or where it cannot be told (hogwild).
    """
    from asyncsim.experiment import replay_run

    answer = replay_run(folder, stage=_stage)
    click.echo(answer)
    if not answer.startswith("identical"):
        sys.exit(FAILED)


@main.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--tolerance", type=click.FloatRange(min=0), help="Largest difference allowed, in place of the noise.")
@click.option("--warmup", type=click.IntRange(min=0), help="Updates to leave out; the scenarios' own if left out.")
@click.option("-o", "--out", type=click.Path(), help="Picture to write: png, svg or pdf.")
def compare(a: str, b: str, tolerance: float | None, warmup: int | None, out: str | None) -> None:
    """Compare two runs or traces: differences beside noise.

    A and B are run directories or trace.parquet files. Exit code 1 where they differ.
    """
    from asyncsim.compare import compare as compare_runs
    from asyncsim.results import refuse_file

    if out is not None:
        refuse_file(out, (".png", ".svg", ".pdf"), a, b)
    found = compare_runs(a, b, tolerance=tolerance, warmup=warmup)
    click.echo(found)
    if out is not None:
        from asyncsim.pictures import draw_comparison

        click.echo(f"\n{draw_comparison(found, Path(out))}")
    if not found.agrees:
        sys.exit(FAILED)


@main.command()
@click.argument("folder", type=click.Path())
@click.option("--format", "style", type=click.Choice(["csv", "chrome"]), default="csv", show_default=True)
@click.option("-o", "--out", type=click.Path(), help="File to write; trace.csv or trace.json in the run if left out.")
def export(folder: str, style: str, out: str | None) -> None:
    """Export a run's trace as csv, or as a timeline for Perfetto.

    The timeline is Chrome trace JSON: open it at ui.perfetto.dev to see what every worker did when.
    """
    from asyncsim import export as exports
    from asyncsim.results import ResultsError, open_run, refuse_file

    ending = ".csv" if style == "csv" else ".json"
    target = Path(out) if out else Path(folder) / f"trace{ending}"
    run_opened = open_run(folder)
    refuse_file(target, (ending,))
    if style == "csv":
        exports.to_csv(run_opened.trace, target)
    elif exports.has_timeline(run_opened.trace):
        exports.to_chrome(run_opened.trace, target, time_unit=run_opened.summary["time_unit"])
    else:
        raise ResultsError(f"{folder}: its trace has no times, so there is no timeline to export")
    click.echo(target)


def _map(context: click.Context, option: click.Parameter, settings: tuple[str, ...]) -> dict[str, str]:
    """Return what ``--map what=column`` says."""
    columns: dict[str, str] = {}
    for setting in settings:
        what, equals, column = (part.strip() for part in setting.partition("="))
        if not (equals and what and column) or what in columns:
            raise click.BadParameter(f"must read WHAT=COLUMN, such as worker=rank, each once; got '{setting}'")
        columns[what] = column
    return columns


_map_option = click.option(
    "--map", "columns", multiple=True, callback=_map, metavar="WHAT=COLUMN", help="What a column is (repeatable)."
)


@main.command("import-trace")
@click.argument("file", type=click.Path())
@click.option("-o", "--out", type=click.Path(), required=True, help="Trace to write, such as trace.parquet.")
@_map_option
@click.option("--workers", type=click.IntRange(min=1), help="Number of workers; found from the file if left out.")
@click.option("--scale", type=float, default=1.0, help="Multiply times: 1e-3 turns milliseconds into seconds.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, help="Seed of what is replayed on it.")
def import_trace(file: str, out: str, **settings: Any) -> None:
    """Import a schedule that others measured, from CSV or Parquet.

    FILE has one row per gradient (worker; read, start, done, arrive, apply times; read_version, update, staleness), one
    column of delays, or one column per worker with the age of its gradient.
    """
    from asyncsim.results import refuse_file, write_trace
    from asyncsim.sources.imported import import_trace as read

    refuse_file(out, (".parquet",), file)
    trace = read(file, **settings)
    write_trace(trace, out)
    mean = trace.staleness().mean()
    click.echo(
        f"{out}: {len(trace):,} gradients of {trace.workers} workers, {int(trace.updates.sum()):,} updates, "
        f"mean staleness {mean:.4g}, {'with' if trace.has_times else 'without'} times"
    )


@main.command()
@click.argument("source", type=click.Path())
@click.option("-o", "--out", type=click.Path(), required=True, help="TOML file to write, such as cluster.toml.")
@click.option("--warmup", type=click.IntRange(min=0), help="Updates to leave out; the run's own if left out.")
@click.option("--workers", type=click.IntRange(min=1), help="Number of workers, where the file does not say.")
@_map_option
@click.option("--time-unit", help="Label of the unit of time; the run's own if left out, else s.")
def calibrate(source: str, out: str, **settings: Any) -> None:
    """Fit a cluster to a run, a trace or a file of delays.

    The file OUT is a scenario's [cluster], for `extends`. The report says which assumptions hold.
    """
    from asyncsim.calibration import calibrate as fit
    from asyncsim.results import refuse_file

    refuse_file(out, (".toml",), source)
    found = fit(source, **settings)
    written = found.write(out)
    click.echo("\n".join(found.lines()))
    click.echo(f"\n{', '.join(map(str, written))}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of scenario files.

    With it, editors complete and check them.
    """
    from asyncsim.schema import scenario_schema

    click.echo(json.dumps(scenario_schema(), indent=2))


@main.command("list")
def list_names() -> None:
    """List every name that a scenario may use, with its keys."""
    from asyncsim.report import name_lines

    click.echo("\n".join(name_lines()))

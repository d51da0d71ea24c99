"""The command line: what it prints, what it writes, how it ends, what it imports."""

from __future__ import annotations

import csv
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import asyncsim
from asyncsim import cli, pictures, report
from asyncsim.network import TOPOLOGIES
from asyncsim.policies import POLICIES
from asyncsim.scenario import RunSettings, build, load
from asyncsim.schema import CHOICES

TESTS = Path(__file__).parent
VALID = TESTS / "cases" / "valid"
SCENARIOS = TESTS.parent / "scenarios"
NAMES = sorted(path.stem for path in VALID.glob("*.toml"))
SWEEPS = ["policies", "sweep_tune"]
TRACES = ["laws", "network_edges", "network_generator", "policies"]  # without a problem

RUN_FILES = {"provenance.json", "scenario.json", "summary.json", "trace.parquet"}
MODEL_FILES = {"iterates.npz", "metrics.parquet"}

DIVERGING = """
name = "diverging"
run.updates = 2000
run.replicas = 3
metrics.every = 10
[[cluster.workers]]
count = 2
service = { law = "exponential", mean = 1.0 }
[problem]
kind = "quadratic"
eigenvalues = [1.0, 4.0]
[method]
kind = "sgd"
step = 3.0
"""


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the small runs of these tests; `test_pictures_are_drawn` has it."""
    monkeypatch.setattr(pictures, "draw_run", lambda run, folder: [])
    monkeypatch.setattr(pictures, "draw_sweep", lambda folder: [])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- every valid case, end to end


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SWEEPS])
def test_a_scenario_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("run", VALID / f"{name}.toml", "--out", "here/run")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.startswith(f"{name}: ")
    out = tmp_path / "here" / "run"
    assert set(contents(out)) == (RUN_FILES if name in TRACES else RUN_FILES | MODEL_FILES)
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")] == []

    run, scenario = asyncsim.open_run(out), load(VALID / f"{name}.toml")
    assert run.scenario == scenario.resolved()
    assert run.trace.seed == scenario.seed
    assert run.trace.replicas.size == scenario.run.replicas
    assert run.summary["workers"] == scenario.workers
    assert run.summary["trace_sha256"] == run.trace.sha256()
    assert run.summary["scenario_sha256"] == scenario.sha256()
    assert f"{run.trace.updates.mean():g}"[:4] in result.stdout
    if name not in TRACES:
        assert set(run.metrics["metric"]) == set(scenario.metrics.of_model)
        assert np.isfinite(run.metrics["value"]).all()
        assert run.final_iterates.shape == (scenario.run.replicas, scenario.problem.dimension)


@pytest.mark.parametrize(
    ("law", "said", "not_said"),
    [
        ({"law": "exponential", "mean": 1.0}, "momentum implied by staleness", "were staleness geometric"),
        ({"law": "constant", "value": 1.0}, "momentum, were staleness geometric", "implied by staleness"),
    ],
)
def test_a_momentum_is_implied_only_by_geometric_staleness(law: dict, said: str, not_said: str) -> None:
    data = {"cluster": {"workers": [{"count": 4, "service": law}]}, "run": {"updates": 100}}
    lines = "\n".join(report.summary_lines(asyncsim.run(build(data)).summary))
    assert said in lines
    assert not_said not in lines


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"kind": "decentralized_sgd", "step": 0.1, "graph": {"topology": "ring"}}, r"spectral gap +0\.6667"),
        (
            {"kind": "compressed_sgd", "step": 0.1, "compressor": {"kind": "top_k", "k": 1}, "reset_after": 9},
            r"resets +5",
        ),
        ({"kind": "sgd", "step": 0.1}, None),
    ],
    ids=lambda case: case["kind"] if isinstance(case, dict) else "",
)
def test_what_a_method_says_of_a_run_is_printed(method: dict, said: str | None) -> None:
    cluster = {"workers": [{"count": 4, "service": {"law": "exponential", "mean": 1.0}}]}
    problem = {"kind": "quadratic", "eigenvalues": [1.0, 2.0]}
    data = {"cluster": cluster, "policy": {"kind": "sync"}, "problem": problem, "method": method}
    run = asyncsim.run(build({**data, "run": {"updates": 50}}))
    printed = "\n".join(report.summary_lines(run.summary))
    assert re.search(said, printed) if said else "gap" not in printed and "resets" not in printed


def test_stop_when_stops(tmp_path: Path) -> None:
    run = asyncsim.run(load(VALID / "stop_when.toml"), tmp_path / "run")
    assert (run.trace.updates < 1000).all()
    assert (run.trace.updates % 5 == 0).all()
    last = run.metrics[run.metrics["update"] == run.metrics.groupby("replica")["update"].transform("max")]
    assert (last["value"] < 1e-3).all()


def test_at_times_measures_on_a_grid(tmp_path: Path) -> None:
    run = asyncsim.run(load(VALID / "at_times.toml"), tmp_path / "run")
    grid = run.metrics[(run.metrics["metric"] == "loss") & (run.metrics["replica"] == 1)]["time"]
    assert grid.tolist() == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_runs(name: str, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    result = invoke("run", VALID / f"{name}.toml", "--out", out)
    assert result.exit_code == 0
    assert result.stderr == ""
    count = len(list((out / "results.parquet").iterdir()))
    assert count == {"policies": len(POLICIES), "sweep_tune": 5}[name]
    assert result.stdout.startswith(f"{name}: {count} cells, means over replicas\n")
    assert ("best by loss, with 95 % intervals" in result.stdout) == (out / "tuned.parquet").exists()
    again = invoke("run", VALID / f"{name}.toml", "--out", out)
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr == (
        f"error: {out}: holds this sweep, complete; choose another --out, or redo it with --force\n"
    )


def test_pictures_are_drawn(tmp_path: Path) -> None:
    run, sweep = tmp_path / "run", tmp_path / "sweep"
    invoke("run", VALID / "groups.toml", "--out", run, "--quiet")
    measured = {"loss.png", "suboptimality.png", "grad_norm.png", "distance.png"}
    assert {path.name for path in run.glob("*.png")} == {*measured, "staleness.png", "timeline.png"}
    before = contents(run)
    for picture in run.glob("*.png"):
        picture.unlink()
    drawn = invoke("plot", run)
    assert sorted(drawn.stdout.split()) == sorted(str(path) for path in run.glob("*.png"))
    assert contents(run) == before  # equal numbers make equal files
    invoke("run", VALID / "sweep_tune.toml", "--out", sweep, "--quiet")
    pngs = {path.name for path in sweep.glob("*.png")}
    assert "loss.png" in pngs
    assert {Path(line).name for line in invoke("plot", sweep).stdout.split()} == pngs


# --- options of run


@pytest.mark.usefixtures("no_pictures")
def test_the_folder_is_named_after_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("run", VALID / "base.toml").exit_code == 0
    assert set(contents(tmp_path / "runs" / "base")) == RUN_FILES | MODEL_FILES


@pytest.mark.usefixtures("no_pictures")
def test_set_and_seed(tmp_path: Path) -> None:
    settings = ["--set", "run.updates=7", "--set", 'policy={ kind = "async" }', "--set", "name=other", "--seed", 5]
    result = invoke("run", VALID / "base.toml", "--out", tmp_path / "run", *settings)
    assert result.exit_code == 0
    run = asyncsim.open_run(tmp_path / "run")
    assert (run.scenario["name"], run.scenario["seed"], run.scenario["policy"]) == ("other", 5, {"kind": "async"})
    assert run.trace.updates.tolist() == [7]
    assert run.trace.seed == 5


@pytest.mark.usefixtures("no_pictures")
def test_quiet_says_nothing(tmp_path: Path) -> None:
    result = invoke("run", VALID / "base.toml", "--out", tmp_path / "run", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.usefixtures("no_pictures")
def test_a_complete_run_is_kept_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["run", VALID / "base.toml", "--out", out]
    invoke(*arguments)
    before = contents(out)
    refused = invoke(*arguments, "--seed", 9)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"error: {out}: holds a complete run; choose another --out, or overwrite it with --force\n"
    )
    assert contents(out) == before
    assert invoke(*arguments, "--seed", 9, "--force").exit_code == 0
    assert asyncsim.open_run(out).trace.seed == 9
    assert invoke(*arguments, "--force").exit_code == 0
    assert contents(out) == before


# --- how it ends


@pytest.mark.usefixtures("no_pictures")
def test_a_diverging_run_fails_and_keeps_what_it_has(tmp_path: Path) -> None:
    file, out = tmp_path / "diverging.toml", tmp_path / "run"
    file.write_text(DIVERGING)
    result = invoke("run", file, "--out", out)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("failed: replica 0 diverged at update ")
    assert lines[0].endswith("; the run is kept up to there. Try a smaller step")
    run = asyncsim.open_run(out)
    assert run.summary["diverged"]
    assert np.isfinite(run.final_iterates).all()
    assert np.isfinite(run.metrics["value"]).all()
    assert set(run.metrics["replica"]) == {0, 1, 2}
    assert invoke("run", file, "--out", out, "--force", "--set", "method.step=0.05").exit_code == 0


@pytest.mark.usefixtures("no_pictures")
def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device", "trace.parquet")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    result = invoke("run", VALID / "base.toml", "--out", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "failed: trace.parquet: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_pictures")
def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    settings = ["--set", "run.updates=200_000_000_000_000", "--set", "run.replicas=1"]
    result = invoke("run", VALID / "synthetic.toml", "--out", tmp_path / "run", *settings)
    assert result.exit_code == 1
    assert result.stderr == "failed: not enough memory; `asyncsim check` says how much a scenario takes\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asyncsim.experiment.write_run", interrupt)
    result = invoke("run", VALID / "base.toml", "--out", tmp_path / "run")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_sweep_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asyncsim import sweep

    finish, calls = sweep.finish, []

    def interrupt_the_third(scenario: Any, trace: Any) -> Any:
        calls.append(scenario)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return finish(scenario, trace)

    monkeypatch.setattr(sweep, "finish", interrupt_the_third)
    arguments = ["run", VALID / "sweep_tune.toml", "--out", tmp_path / "sweep"]
    result = invoke(*arguments)
    assert result.exit_code == 130
    assert result.stderr == (
        f"interrupted; finished cells are kept. To resume, run the same again with --out {tmp_path}/sweep\n"
    )
    assert len(list((tmp_path / "sweep" / "results.parquet").iterdir())) == 2
    assert invoke(*arguments).exit_code == 0
    assert len(calls) == 3 + 3


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(report, "name_lines", broken)
    with pytest.raises(ZeroDivisionError):
        invoke("list")


# --- check


def check(data: dict) -> dict[str, str]:
    lines = report.check_lines(build(data), name="file")
    assert lines[0] == "file: valid"
    return dict(line.split(maxsplit=1) for line in lines[1:])


WORKERS = {"workers": [{"count": 4, "service": {"law": "exponential", "mean": 2.0}}]}


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"run": {"updates": 1000, "replicas": 3}}, "about 3,000 gradients"),
        ({"run": {"updates": 1000}, "policy": {"kind": "sync"}}, "about 4,000 gradients"),
        ({"run": {"updates": 1000}, "policy": {"kind": "rennala", "batch": 10}}, "about 10,000 gradients"),
        ({"run": {"time": 100.0, "replicas": 2}}, "about 400 gradients"),
        ({"run": {"time": 100.0, "updates": 50}}, "about 50 gradients"),
        ({"run": {"time": 100.0, "updates": 5000}}, "about 200 gradients"),
        ({"run": {"updates": 100}, "sweep": {"seed": [1, 2, 3]}}, "about 300 gradients in all"),
        (
            {"run": {"source": "synthetic", "staleness": {"law": "constant", "value": 1}, "updates": 10}},
            "about 10 gradients",
        ),
    ],
)
def test_check_says_how_many_rows(changes: dict, rows: str) -> None:
    assert check({"cluster": WORKERS, **changes})["rows"] == rows


def test_check_is_right_about_the_rows() -> None:
    for name in NAMES:
        scenario = load(VALID / f"{name}.toml")
        if name in ("ringmaster", "network_generator", *SWEEPS):  # discarded gradients come on top
            continue
        said = float(report.check_lines(scenario, name=name)[1].split()[-2].replace(",", ""))
        rows = len(asyncsim.run(scenario).trace)
        most = 3.0 if name in ("laws", "at_times") else 1.1
        if scenario.run.stop_when is None:
            assert rows / most <= said <= rows * most, name
        else:
            assert rows <= said, name


def test_check_counts_kept_iterates_as_memory() -> None:
    data = {
        "cluster": WORKERS,
        "run": {"updates": 1000, "replicas": 100},
        "problem": {"kind": "quadratic", "dimension": 50, "condition_number": 2.0},
        "method": {"kind": "sgd", "step": 0.1},
    }
    assert check(data)["memory"] == "about 8 MB"  # 80 bytes a row
    assert check({**data, "metrics": {"record": ["momentum"]}})["memory"] == "about 48 MB"  # and 8 · 50 for iterates


REAL = {
    "problem": {"kind": "quadratic", "eigenvalues": [1.0]},
    "method": {"kind": "sgd", "step": 0.1},
    "run": {"source": "record", "backend": "threads", "updates": 1000, "replicas": 3},
}


@pytest.mark.parametrize(
    ("settings", "rows", "time"),
    [
        ({"wait": "sleep"}, "about 3,000 gradients", "about 25 min of the clock"),  # 3 · 1000 · 2 s / 4 workers
        ({"wait": "sleep", "backend": "queue"}, "about 3,000 gradients", "about 25 min of the clock"),
        ({}, "about 3,000 gradients", "as long as its workers compute: measure a short one"),
        ({"updates": None, "time": 20.0}, None, "about 60 s; rows and memory as fast as workers compute"),
    ],
)
def test_check_knows_the_time_of_a_real_run_where_its_workers_wait(settings: dict, rows: str | None, time: str) -> None:
    run = {key: value for key, value in {**REAL["run"], **settings}.items() if value is not None}
    said = check({"cluster": WORKERS, **REAL, "run": run})
    assert (said.get("rows"), said["time"]) == (rows, time)


def test_check_writes_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("asyncsim.experiment.make_trace", None)
    result = invoke("check", SCENARIOS / "quickstart.toml", "--set", "run.updates=123", "--seed", 5)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"{SCENARIOS}/quickstart.toml: valid",
        "rows       about 492 gradients",
        "memory     about 39 kB",
        "time       about a second on one core",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_run_may_start_from_the_trace_of_another(tmp_path: Path) -> None:
    first = asyncsim.run(load(VALID / "groups.toml"), tmp_path / "first")
    data = {key: first.scenario[key] for key in ("seed", "problem", "method", "metrics")}
    data["run"] = {"source": "trace", "trace": "first/trace.parquet"}
    scenario = build(data, folder=tmp_path)
    assert f"about {len(first.trace)} gradients" in report.check_lines(scenario, name="second")[1]
    second = asyncsim.run(scenario)
    assert second.trace.sha256() == first.trace.sha256()
    assert np.array_equal(second.final_iterates, first.final_iterates)


# --- list, schema, help


def test_list_names_everything_with_its_keys() -> None:
    sections = dict(part.split("\n", 1) for part in invoke("list").stdout.rstrip().split("\n\n"))
    assert sections["network: topology"].strip() == f"{', '.join(TOPOLOGIES)}, or a networkx generator"
    settings = {title.removeprefix("run: "): said for title, said in sections.items() if title.startswith("run: ")}
    assert settings.keys() == {"backend", "consistency", "wait", "on_worker_death"}
    for name, said in settings.items():
        assert all(f"'{word}'" in repr(RunSettings.model_fields[name].annotation) for word in said.strip().split(", "))
    for (tag, registry), title in zip(CHOICES.values(), list(sections)[: len(CHOICES)], strict=True):
        assert title.endswith(f": {tag}")
        lines = [line.replace(",", "").split() for line in sections[title].splitlines()]
        assert {name: fields for name, *fields in lines} == {
            name: [field for field in kind.model_fields if field != tag] for name, kind in registry.items()
        }


def test_schema_is_json() -> None:
    schema = json.loads(invoke("schema").stdout)
    assert schema["title"] == "asyncsim scenario"
    assert {"cluster", "run", "sweep", "extends"} <= set(schema["properties"])


def test_help_names_every_command() -> None:
    said = invoke("--help").stdout
    assert {"run", "check", "plot", "replay", "compare", "calibrate", "import-trace", "list"} <= set(cli.main.commands)
    assert all(f"\n  {name} " in said for name in cli.main.commands)
    assert "..." not in said.partition("Commands:")[2]  # each fits its line
    for command in cli.main.commands:
        assert invoke(command, "--help").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["fly"], ["run"], ["run", "x.toml", "--seed", "many"], ["export", ".", "--format", "x"]]
)
def test_a_wrong_command_line_is_bad_input(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


@pytest.mark.parametrize("command", ["plot", "export"])
def test_a_folder_that_is_no_run_is_bad_input(command: str, tmp_path: Path) -> None:
    result = invoke(command, tmp_path)
    assert (result.exit_code, result.stderr) == (2, f"error: {tmp_path}: is no run directory\n")


# --- export


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    asyncsim.run(load(VALID / "ringmaster.toml"), folder / "simulated")
    asyncsim.run(load(VALID / "synthetic.toml"), folder / "synthetic")
    return folder


def test_csv_is_the_table(exported: Path) -> None:
    result = invoke("export", exported / "simulated")
    assert result.stdout == f"{exported}/simulated/trace.csv\n"
    trace = asyncsim.open_run(exported / "simulated").trace
    with open(exported / "simulated" / "trace.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(trace)
    assert [int(row["worker"]) for row in rows] == trace["worker"].tolist()
    assert [float(row["read_time"]) for row in rows] == trace["read_time"].tolist()
    assert {row["status"] for row in rows} == {"applied", "cancelled"}
    stale = [int(row["staleness"]) for row in rows if row["status"] == "applied"]
    assert stale == trace.staleness().tolist()
    assert {row["staleness"] for row in rows if row["status"] != "applied"} == {""}


def test_chrome_trace_has_a_thread_per_worker(exported: Path, tmp_path: Path) -> None:
    file = tmp_path / "timeline.json"
    assert invoke("export", exported / "simulated", "--format", "chrome", "-o", file).exit_code == 0
    events = json.loads(file.read_text())["traceEvents"]
    trace = asyncsim.open_run(exported / "simulated").trace
    kinds = {kind: [event for event in events if event["ph"] == kind] for kind in {event["ph"] for event in events}}
    assert set(kinds) == {"M", "X", "i"}
    assert all({"pid", "name", "args"} <= set(event) for event in kinds["M"])
    threads = [(event["pid"], event["tid"]) for event in kinds["M"] if event["name"] == "thread_name"]
    assert threads == [(replica, thread) for replica in (0, 1) for thread in range(trace.workers + 1)]  # and the server
    assert all({"ts", "dur", "pid", "tid", "name"} <= set(event) for event in kinds["X"])
    assert min(event["dur"] for event in kinds["X"]) >= 0
    assert {(event["pid"], event["tid"]) for event in kinds["X"]} == {(r, w) for r, w in threads if w < trace.workers}
    computing = [event for event in kinds["X"] if event["cat"] == "compute"]
    assert len(computing) == len(trace)
    # Nobody computes two gradients at once, and what is shown is what the trace says, in microseconds.
    for place in {(event["pid"], event["tid"]) for event in computing}:
        mine = sorted((e["ts"], e["dur"]) for e in computing if (e["pid"], e["tid"]) == place)
        assert all(start + lasts <= after + 1e-3 for (start, lasts), (after, _) in itertools.pairwise(mine))
    first = trace["done_time"][0] - trace["start_time"][0]
    assert computing[0]["dur"] == pytest.approx(1e6 * first)
    assert len(kinds["i"]) == trace.updates.sum()


def test_a_trace_without_times_has_no_timeline(exported: Path) -> None:
    result = invoke("export", exported / "synthetic", "--format", "chrome")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {exported}/synthetic: its trace has no times, so there is no timeline to export\n"
    )
    assert invoke("export", exported / "synthetic").exit_code == 0


# --- what is imported

HEAVY = ("pandas", "pyarrow", "numba", "scipy.stats", "sklearn", "matplotlib", "seaborn", "networkx", "simpy")
DRIVER = f"""
import sys
from asyncsim.cli import main
try:
    main(sys.argv[1:], prog_name="asyncsim")
finally:
    print("loaded:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["--help"], []),
        (["list"], []),
        (["schema"], []),
        (["check", str(SCENARIOS / "quickstart.toml")], []),
        (["check", str(VALID / "groups.toml")], []),
        (["check", str(VALID / "sweep_tune.toml")], []),
        (["check", str(VALID / "own.toml")], []),
        (["check", str(TESTS / "cases" / "invalid" / "count_zero.toml")], []),
        (["check", str(VALID / "network_generator.toml")], ["networkx"]),  # the list can be other than empty
    ],
    ids=lambda value: " ".join(Path(word).stem for word in value),
)
def test_what_a_command_loads(arguments: list[str], loaded: list[str], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DRIVER, *arguments], capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == (2 if "invalid" in arguments[-1] else 0), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].split()[1:] == loaded

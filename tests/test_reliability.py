"""Sweeps survive: the bytes are the same on any number of processes, whatever is killed, and wherever the cells run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from disturbances import Place

from asyncsim import cli, pictures
from asyncsim import sweep as module
from asyncsim.cells import cells
from asyncsim.executors import ExecutorError
from asyncsim.results import ResultsError
from asyncsim.scenario import Scenario, build
from asyncsim.sweep import failures, part, read_results, run_sweep, state

TESTS = Path(__file__).parent

BASE = {
    "cluster": {"workers": [{"count": 2, "service": {"law": "exponential", "mean": 1.0}}]},
    "problem": {"kind": "quadratic", "eigenvalues": [1.0]},
    "method": {"kind": "sgd", "step": 0.1},
    "run": {"updates": 20, "replicas": 2},
}
SWEEP = {"method.step": [0.1, 0.2, 0.3], "cluster.workers.0.count": [1, 2], "tune": "method.step", "by": "loss"}


def scenario(**changes: Any) -> Scenario:
    return build({**BASE, "sweep": SWEEP, **changes})


def disturbed(count: int, **sweep: Any) -> Scenario:
    """Return a sweep of as many cells, each disturbed as the files named cell0, cell1, … say."""
    sweep = {"problem.cell": list(range(count)), "cluster.workers.0.count": [1, 2], **sweep}
    if count > 2:
        sweep["exclude"] = [{"problem.cell": 2, "cluster.workers.0.count": 2}]
    return build({**BASE, "problem": {"kind": "disturbances:Disturbed"}, "sweep": sweep}, folder=TESTS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(tmp_path / "place")
    monkeypatch.setenv("DISTURBANCES", str(place.folder))
    yield place
    place.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of `disturbed(3)` when nothing happens, one cell after another in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return sweep_here(disturbed(3), folder)


def sweep_here(swept: Scenario, folder: Path) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTURBANCES", str(folder / "nothing"))
        patch.setattr(module, "_are_harmless", lambda remaining, sweep: True)
        run_sweep(swept, folder / "sweep")
    return contents(folder / "sweep")


# --- any number of processes --------------------------------------------------------------------------------------


def test_any_number_of_jobs_gives_the_same_bytes(tmp_path: Path) -> None:
    run_sweep(scenario(), tmp_path / "here")
    for jobs in (1, 3):
        run_sweep(scenario(), tmp_path / f"jobs{jobs}", jobs=jobs)
        assert contents(tmp_path / f"jobs{jobs}") == contents(tmp_path / "here")


@pytest.mark.parametrize(
    ("swept", "harmless"),
    [
        (scenario(), True),
        (scenario(run={"updates": 2_000_000}), False),
        (disturbed(2), False),
    ],
)
def test_processes_are_started_where_they_pay_or_protect(swept: Scenario, harmless: bool) -> None:
    assert swept.sweep is not None
    assert module._are_harmless(cells(swept), swept.sweep) == harmless


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"jobs": 0}, "--jobs: must be at least 1, got 0"),
        ({"scheduler": "tcp://nowhere:1"}, "--scheduler: is for --executor dask"),
    ],
)
def test_impossible_executors_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match=words):
        run_sweep(scenario(), tmp_path / "sweep", **settings)
    assert not (tmp_path / "sweep").exists()


# --- a poisoned cell ----------------------------------------------------------------------------------------------


def test_poisoned_cells_are_reported_and_cost_nothing_else(
    tmp_path: Path, place: Place, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cell raises and one kills its worker; the others have the bytes that they always have."""
    monkeypatch.setattr(pictures, "draw_sweep", lambda folder: [])
    place.set(cell0="raise", cell2="die")
    file, out = tmp_path / "sweep.json", tmp_path / "sweep"
    swept = disturbed(3)
    monkeypatch.setattr("asyncsim.scenario.load", lambda *given, **settings: swept)
    arguments = ["run", str(file), "--out", str(out), "--jobs", "2"]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 1
    poisoned = [cell for cell in cells(swept) if cell.values["problem.cell"] != 1]
    for cell in poisoned:
        values = "problem.cell = {}, cluster.workers.0.count = {}".format(*cell.values.values())
        assert f"failed: cell {cell.key} ({values}): " in result.stderr
        record = json.loads((out / "failed" / f"{cell.key}.json").read_text())
        assert (record["cell"], record["seed"], record["values"]) == (cell.key, 0, cell.values)
        if cell.values["problem.cell"] == 0:
            assert record["reason"] == "ArithmeticError: poisoned"
            assert 'raise ArithmeticError("poisoned")' in record["traceback"]
        else:
            assert "SIGKILL" in record["reason"]
    assert "failed: 3 cells, tracebacks in " in result.stderr
    assert sorted(failure["cell"] for failure in failures(out)) == sorted(cell.key for cell in poisoned)
    whole = {name: data for name, data in contents(out).items() if not name.startswith("failed/")}
    assert len([name for name in whole if name.startswith("results")]) == 2
    assert whole.items() <= undisturbed.items()
    place.clear("cell0", "cell2")
    assert CliRunner().invoke(cli.main, [*arguments, "--quiet"]).exit_code == 0
    assert contents(out) == undisturbed
    assert not (out / "failed").exists()


def test_a_cell_that_exhausts_the_memory_costs_nothing_else(
    tmp_path: Path, place: Place, undisturbed: dict[str, bytes]
) -> None:
    """Two cells do, one after another in one worker, and then two others run in it."""
    place.set(cell0="memory")
    out = tmp_path / "sweep"
    run_sweep(disturbed(2), out, jobs=1)
    failed = failures(out)
    assert [failure["values"]["problem.cell"] for failure in failed] == [0, 0]
    for failure in failed:
        assert (failure["seed"], failure["reason"]) == (0, "MemoryError")
        assert "taken.append(bytearray(1 << 20))" in failure["traceback"]
    finished = {name: data for name, data in contents(out).items() if name.startswith("results")}
    assert len(finished) == 2
    assert finished.items() <= undisturbed.items()


def test_a_cell_past_its_timeout_fails(tmp_path: Path, place: Place) -> None:
    place.set(cell0="hold")
    swept = build({**disturbed(1).resolved(), "sweep": {"problem.cell": [0], "timeout": 0.5}}, folder=TESTS)
    frame = run_sweep(swept, tmp_path / "sweep")
    assert frame.empty
    (failure,) = failures(tmp_path / "sweep")
    assert failure["reason"] == "took longer than 0.5 s"
    patient = build({**swept.resolved(), "sweep": {"problem.cell": [0], "timeout": 400.0}}, folder=TESTS)
    place.clear("cell0")
    assert len(run_sweep(patient, tmp_path / "sweep")) == 2  # another timeout makes no other sweep


def test_tuning_does_with_the_cells_that_there_are(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_are_harmless", lambda remaining, sweep: True)
    place.set(cell0="raise")
    swept = disturbed(2, tune="problem.cell", by="loss")
    run_sweep(swept, tmp_path / "sweep")
    assert pq.read_table(tmp_path / "sweep" / "tuned.parquet")["problem.cell"].to_pylist() == [1, 1]
    place.clear("cell0")
    run_sweep(swept, tmp_path / "sweep")
    assert contents(tmp_path / "sweep") == sweep_here(swept, tmp_path / "undisturbed")


# --- kills --------------------------------------------------------------------------------------------------------


def test_a_sweep_whose_workers_are_killed_ends_with_the_same_bytes(
    tmp_path: Path, place: Place, undisturbed: dict[str, bytes]
) -> None:
    place.set(cell0="hold once", cell1="hold once", cell2="hold once")

    def kill_three() -> None:
        for _ in range(3):
            os.kill(place.inside()[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_three, daemon=True)
    thread.start()
    run_sweep(disturbed(3), tmp_path / "sweep", jobs=2)
    thread.join(60)
    assert not thread.is_alive()
    assert contents(tmp_path / "sweep") == undisturbed


def command(file: Path, out: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command line in a process of its own."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", "asyncsim", "run", str(file), "--out", str(out), "--quiet", *more],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


DISTURBED = """
run = { updates = 20, replicas = 2 }
problem.kind = "disturbances:Disturbed"
method = { kind = "sgd", step = 0.1 }
[[cluster.workers]]
count = 2
service = { law = "exponential", mean = 1.0 }
[sweep]
"problem.cell" = [0, 1, 2]
"cluster.workers.0.count" = [1, 2]
exclude = [{ "problem.cell" = 2, "cluster.workers.0.count" = 2 }]
"""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_sweep_that_is_stopped_keeps_what_is_done_and_leaves_nobody(
    how: int, code: int, tmp_path: Path, place: Place, undisturbed: dict[str, bytes]
) -> None:
    file, out = tmp_path / "swept.toml", tmp_path / "sweep"
    file.write_text(DISTURBED)
    place.set(cell1="hold", cell2="hold")
    with command(file, out, "--jobs", "2") as process:
        held = [place.inside()[0], place.inside()[0]]
        os.kill(process.pid, how)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert all(place.ended(pid) for pid in held)
    if how == signal.SIGINT:
        assert said == f"interrupted; finished cells are kept. To resume, run the same again with --out {out}\n"
        assert not list(out.rglob("*.partial"))
    kept = contents(out)
    assert {name: data for name, data in kept.items() if name in undisturbed} == kept
    place.clear("cell1", "cell2")
    swept = build({**disturbed(3).resolved()}, folder=TESTS)
    run_sweep(swept, out, jobs=1)
    assert contents(out) == undisturbed


#: Runs a sweep again and again, each time in a process that kills itself before or after its n-th rename.
KILLED_AT_EVERY_RENAME = """
import os, signal, sys, tempfile
from pathlib import Path
import json
from asyncsim.experiment import make_trace
from asyncsim.scenario import build
from asyncsim.sweep import run_sweep

swept, out = build(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])
replace, made = os.replace, 0
make_trace(build({key: value for key, value in swept.resolved().items() if key != "sweep"}))  # compiled once, for all
import pandas, scipy.stats

def child(deadline, late):
    def dying(*names):
        global made
        made += 1
        if made == deadline and not late:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)
        if made == deadline:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = dying
    run_sweep(swept, out)
    os._exit(0)

for attempt in range(1000):
    if os.fork() == 0:
        child(1 + attempt % 4, attempt % 3 == 0)
    _, status = os.wait()
    print(os.waitstatus_to_exitcode(status))
    if status == 0:
        break
"""


def test_a_sweep_killed_at_every_rename_has_only_whole_files_and_completes(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    (tmp_path / "swept.json").write_text(json.dumps(scenario().resolved()))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = textwrap.dedent(KILLED_AT_EVERY_RENAME)
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "swept.json"), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout.split()
    assert ended[-1] == "0"
    assert ended.count("-9") == len(ended) - 1 >= 6
    run_sweep(scenario(), tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


# --- parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_shards_are_equal_parts_that_keep_schedules_together(n: int) -> None:
    all_cells = cells(scenario())
    parts = [part(all_cells, i, n) for i in range(1, n + 1)]
    assert sorted(cell.number for mine in parts for cell in mine) == list(range(6))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if n == 2:
        assert [{cell.scenario.workers for cell in mine} for mine in parts] == [{1}, {2}]


def test_shards_of_one_folder_make_the_whole(tmp_path: Path) -> None:
    run_sweep(scenario(), tmp_path / "whole")
    out = tmp_path / "sharded"
    for i, finished in ((2, 2), (3, 4), (2, 4), (1, 6)):
        assert not (out / "tuned.parquet").exists()
        assert len(run_sweep(scenario(), out, shard=(i, 3))) == 2 * finished
    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(ResultsError, match="shards share this folder"):
        run_sweep(scenario(), out, shard=(1, 3), force=True)
    with pytest.raises(ResultsError, match="must be i/n"):
        run_sweep(scenario(), out, shard=(4, 3))


def test_shards_of_several_folders_are_merged_by_copying(tmp_path: Path) -> None:
    import shutil

    for i in (1, 2):
        run_sweep(scenario(), tmp_path / f"shard{i}", shard=(i, 2))
        shutil.copytree(tmp_path / f"shard{i}", tmp_path / "merged", dirs_exist_ok=True)
    run_sweep(scenario(), tmp_path / "merged")  # what is left: the best values
    run_sweep(scenario(), tmp_path / "whole")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_a_shard_leaves_alone_what_others_are_writing(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    run_sweep(scenario(), out, shard=(1, 2))
    mine, theirs = part(cells(scenario()), 2, 2)[0], part(cells(scenario()), 1, 2)[0]
    for cell in (mine, theirs):
        (out / "results.parquet" / f".{cell.key}.parquet.abc.partial").write_bytes(b"half")
    run_sweep(scenario(), out, shard=(2, 2))
    assert [path.name for path in out.rglob("*.partial")] == [f".{theirs.key}.parquet.abc.partial"]


def test_shards_that_start_at_once_share_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, replace = tmp_path / "sweep", os.replace

    def second(old: Any, new: Any) -> None:
        if new == out:  # another shard has been faster
            monkeypatch.setattr(os, "replace", replace)
            run_sweep(scenario(), out, shard=(1, 2))
        replace(old, new)

    monkeypatch.setattr(os, "replace", second)
    assert len(run_sweep(scenario(), out, shard=(2, 2))) == 12
    run_sweep(scenario(), tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep", "whole"]


@pytest.mark.parametrize("text", ["2", "0/3", "4/3", "a/b", "1/2/3", "-1/3"])
def test_a_shard_that_is_none_is_bad_input(text: str) -> None:
    result = CliRunner().invoke(cli.main, ["run", str(TESTS / "cases/valid/sweep_tune.toml"), f"--shard={text}"])
    assert result.exit_code == 2
    assert "must read I/N" in result.stderr


def test_the_command_says_which_cells_are_still_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(pictures, "draw_sweep", lambda folder: drawn.append(folder) or [])
    arguments = ["run", str(TESTS / "cases/valid/sweep_tune.toml"), "--out", str(tmp_path / "sweep"), "--shard"]
    first = CliRunner().invoke(cli.main, [*arguments, "1/2"])
    assert (first.exit_code, drawn) == (0, [])
    assert "3 cells of other shards are still to come" in first.stdout
    second = CliRunner().invoke(cli.main, [*arguments, "2/2"])
    assert (second.exit_code, drawn) == (0, [tmp_path / "sweep"])
    assert "to come" not in second.stdout


def test_a_scenario_without_cells_has_no_shards(tmp_path: Path) -> None:
    arguments = ["run", str(TESTS / "cases/valid/base.toml"), "--out", str(tmp_path / "run"), "--shard", "1/2"]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert "has no [sweep]" in result.stderr


# --- Dask ---------------------------------------------------------------------------------------------------------


def test_a_dask_cluster_gives_the_same_bytes_though_a_worker_is_killed(
    tmp_path: Path, place: Place, undisturbed: dict[str, bytes]
) -> None:
    """The Dask worker dies with a cell inside; that cell is tried again, and the cells beside it are not hurt."""
    distributed = pytest.importorskip("distributed")
    place.set(cell1="hold once", cell2="raise")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        held: list[int] = []

        def kill_the_dask_worker() -> None:
            held.extend(place.inside())
            os.kill(held[1], signal.SIGKILL)

        threading.Thread(target=kill_the_dask_worker, daemon=True).start()
        run_sweep(disturbed(3), tmp_path / "sweep", executor="dask", scheduler=cluster.scheduler_address)
        assert place.ended(held[0])
        assert [failure["reason"] for failure in failures(tmp_path / "sweep")] == ["ArithmeticError: poisoned"]
        place.clear("cell2")
        run_sweep(disturbed(3), tmp_path / "sweep", executor="dask", scheduler=cluster.scheduler_address)
    assert contents(tmp_path / "sweep") == undisturbed


def test_without_dask_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ExecutorError, match=r"pip install 'asyncsim\[dask\]'"):
        run_sweep(scenario(), tmp_path / "sweep", executor="dask")
    assert not (tmp_path / "sweep").exists()


def test_a_shard_answers_for_its_own_failures(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_are_harmless", lambda remaining, sweep: True)
    place.set(cell1="raise")
    for i in (1, 2, 3, 4):
        run_sweep(disturbed(2), tmp_path / "sweep", shard=(i, 4))
    assert [len(state(disturbed(2), tmp_path / "sweep", shard=(i, 4))[0]) for i in (1, 2, 3, 4)] == [0, 1, 0, 1]
    assert state(disturbed(2), tmp_path / "sweep")[1] == 0


@pytest.mark.parametrize(("wanted", "sizes"), [(1, [6]), (2, [3, 3]), (4, [1, 2, 1, 2]), (99, [1] * 6)])
def test_batches_keep_cells_of_one_schedule_together(wanted: int, sizes: list[int], tmp_path: Path) -> None:
    from asyncsim.executors.dask import batches

    tasks = [module._task(cell, tmp_path, None, None) for cell in cells(scenario())]
    found = batches(tasks, wanted)
    assert [len(batch) for batch in found] == sizes
    groups = [task.group for batch in found for task in batch]
    assert groups == sorted(groups)
    assert sorted(task.key for batch in found for task in batch) == sorted(task.key for task in tasks)


# --- at full size, by hand: pytest -m slow ------------------------------------------------------------------------

LARGE_FILE = """
name = "large"
run = { updates = 300, replicas = 2 }
problem = { kind = "quadratic", eigenvalues = [1.0] }
method = { kind = "sgd", step = 0.1 }
[[cluster.workers]]
count = 4
service = { law = "exponential", mean = 1.0 }
[sweep]
"method.step" = { start = 0.01, stop = 0.2, num = 20 }
seed = { start = 0, stop = 9, num = 10 }
tune = "method.step"
by = "loss"
"""


def workers_of(pid: int) -> list[int]:
    """Return the child processes of a process (Linux)."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("large")
    (folder / "large.toml").write_text(LARGE_FILE)
    with command(folder / "large.toml", folder / "whole", "--jobs", "1") as process:
        assert process.wait() == 0
    found = contents(folder / "whole")
    assert len([name for name in found if name.startswith("results.parquet")]) == 200
    return folder / "large.toml", found


@pytest.mark.slow
def test_200_cells_with_three_workers_killed(large: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    file, whole = large
    moments = random.Random(0).sample(range(5, 190), 3)
    with command(file, tmp_path / "sweep", "--jobs", "2") as process:
        for moment in sorted(moments):
            while len(list((tmp_path / "sweep" / "results.parquet").glob("0*"))) < moment:
                assert process.poll() is None
            os.kill(random.Random(moment).choice(workers_of(process.pid)), signal.SIGKILL)
        assert process.wait(600) == 0
    assert contents(tmp_path / "sweep") == whole


@pytest.mark.slow
def test_100_kills_of_the_whole_run(large: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """Each kill comes a random moment after the run has begun to write."""
    file, whole = large
    out, chance, kills = tmp_path / "sweep", random.Random(1), 0
    while kills < 100:
        before = len(list((out / "results.parquet").glob("*")))
        with command(file, out, "--jobs", "2") as process:
            while process.poll() is None and len(list((out / "results.parquet").glob("*"))) == before:
                pass
            try:
                code = process.wait(chance.uniform(0.0, 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        kills += code == -9
        for path in [*out.rglob("*.parquet")]:
            if path.is_file() and not path.name.startswith("."):
                pq.read_table(path)
        for path in out.rglob("*.json"):
            json.loads(path.read_text())
        if code == 0:  # complete: once more from the start, until it has been killed often enough
            assert contents(out) == whole
            import shutil

            shutil.rmtree(out)
        else:
            assert code == -9
    if out.exists():
        with command(file, out, "--jobs", "2") as process:
            assert process.wait(600) == 0
        assert contents(out) == whole
    assert len(read_results(out)) == 400

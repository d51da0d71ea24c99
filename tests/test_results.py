"""Run directories: there as a whole or not at all, opened as they were written, refused when damaged."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import asyncsim
from asyncsim import results
from asyncsim.results import ResultsError, aside, folder_aside, open_run, refuse_existing
from asyncsim.scenario import build
from asyncsim.trace import TraceError

SCENARIO = {
    "cluster": {"workers": [{"count": 3, "service": {"law": "exponential", "mean": 1.0}}]},
    "problem": {"kind": "quadratic", "eigenvalues": [1.0, 2.0]},
    "method": {"kind": "sgd", "step": 0.1},
    "run": {"updates": 30, "replicas": 2},
    "metrics": {"every": 10, "record": ["loss", "grad_norm"]},
}
FILES = ["iterates.npz", "metrics.parquet", "provenance.json", "scenario.json", "summary.json", "trace.parquet"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    asyncsim.run(build(SCENARIO), tmp_path / "run")
    return tmp_path / "run"


# --- as a whole or not at all -------------------------------------------------------------------------------------


def test_a_file_appears_complete(tmp_path: Path) -> None:
    with aside(tmp_path / "deep" / "file") as partial:
        partial.write_text("new")
        assert not (tmp_path / "deep" / "file").exists()
    assert contents(tmp_path) == {"deep/file": b"new"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_that_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "file").write_text("old")

    def write_half() -> None:
        with aside(tmp_path / "file") as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert contents(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "scenario.json").write_text("old")

    def write_half() -> None:
        with folder_aside(folder, force=True) as partial:
            (partial / "scenario.json").write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert contents(tmp_path) == {"run/scenario.json": b"old"}


LEAVES_HALF = """
import os, signal, sys
from asyncsim.results import folder_aside
with folder_aside(sys.argv[1]) as partial:
    (partial / "trace.parquet").write_text("half")
    print(partial, flush=True)
    sys.stdin.read() if sys.argv[2] == "lives" else os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="who lives is told from /proc")
@pytest.mark.parametrize("fate", ["lives", "killed", "killed elsewhere", "killed under our number", "killed beside"])
def test_what_a_killed_process_left_is_removed_and_nothing_else(
    fate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_BEGAN", time.time() + 60)  # what the process leaves is older than this one
    out = tmp_path / ("run.more" if fate == "killed beside" else "run")
    command = [sys.executable, "-c", LEAVES_HALF, str(out), fate.split()[0]]
    with subprocess.Popen(
        command, stdin=-1, stdout=-1, text=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    ) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        if fate != "lives":
            other.wait()
        pid = f".{other.pid}."
        assert pid in left.name
        if fate == "killed elsewhere":
            left = left.rename(left.with_name(left.name.replace(platform.node()[:40], "elsewhere")))
        if fate == "killed under our number":
            left = left.rename(left.with_name(left.name.replace(pid, f".{os.getpid()}.")))
        asyncsim.run(build(SCENARIO), tmp_path / "run")
        assert left.exists() == (fate in ("lives", "killed elsewhere", "killed beside"))
        other.kill()


def test_what_is_younger_than_this_process_is_not_removed(tmp_path: Path) -> None:
    """Another thread of it may just now be writing that."""
    with folder_aside(tmp_path / "run") as one:
        asyncsim.run(build(SCENARIO), tmp_path / "run")
        assert one.exists()


def test_the_only_run_that_there_is_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was killed between moving the old run away and the new one in its place."""
    monkeypatch.setattr(results, "_BEGAN", time.time() + 60)
    old = tmp_path / f".run.{platform.node()[:40]}.{os.getpid()}.abc.old"
    old.mkdir()
    for there in (True, False):
        asyncsim.run(build(SCENARIO), tmp_path / "run", force=True)
        assert old.exists() == there


#: What writes the files of a run, in turn; each fails in the middle of the file it is given.
WRITERS = ["pyarrow.parquet.write_table", "numpy.savez", "json.dumps", "asyncsim.results.provenance"]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("before", [False, True], ids=["nothing there", "a run there"])
def test_a_run_that_fails_while_it_is_written_writes_nothing(
    writer: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs" / "run"
    if before:
        asyncsim.run(build(SCENARIO), out)
    kept = contents(tmp_path)

    def full_disk(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    changed = build({**SCENARIO, "seed": 1})
    result = asyncsim.run(changed)
    monkeypatch.setattr(writer, full_disk)
    with pytest.raises(OSError, match="No space left"), folder_aside(out, force=before) as partial:
        results.write_run(partial, changed, result)
    monkeypatch.undo()
    assert contents(tmp_path) == kept


# --- where one may write ------------------------------------------------------------------------------------------


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    asyncsim.run(build(SCENARIO), tmp_path / "run")
    assert sorted(contents(tmp_path / "run")) == FILES


def occupied_by_a_file(path: Path) -> None:
    path.write_text("mine")


def occupied_by_notes(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def occupied_by_a_run(path: Path) -> None:
    path.mkdir()
    (path / "scenario.json").write_text("{}")


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("mine")


@pytest.mark.parametrize(
    ("occupy", "force", "message"),
    [
        (occupied_by_a_file, False, "is a file, not a run directory"),
        (occupied_by_a_file, True, "is a file, not a run directory"),
        (occupied_by_notes, False, "exists and is no run directory; choose another --out"),
        (occupied_by_notes, True, "exists and is no run directory; choose another --out"),
        (occupied_by_a_run, False, "holds a complete run; choose another --out, or overwrite it with --force"),
        (below_a_file, False, "is no folder that one may write to"),
    ],
)
def test_what_is_there_is_not_overwritten(
    occupy: Callable[[Path], None], force: bool, message: str, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "run"
    out.parent.mkdir()
    occupy(out)
    kept = contents(tmp_path)
    with pytest.raises(ResultsError, match=message):
        asyncsim.run(build(SCENARIO), out, force=force)
    assert contents(tmp_path) == kept


def test_a_folder_that_may_not_be_written_to_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ResultsError, match="cannot be written"):
        refuse_existing(tmp_path / "runs" / "run", force=False)


def test_force_replaces_a_run_as_a_whole(run_folder: Path) -> None:
    (run_folder / "loss.png").write_bytes(b"a picture of the old run")
    asyncsim.run(build({**SCENARIO, "seed": 1}), run_folder, force=True)
    assert sorted(contents(run_folder)) == FILES
    assert json.loads((run_folder / "scenario.json").read_text())["seed"] == 1
    assert [path.name for path in run_folder.parent.iterdir()] == ["run"]


# --- opening ------------------------------------------------------------------------------------------------------


def test_a_run_is_opened_as_it_was_written(tmp_path: Path) -> None:
    run = asyncsim.run(build(SCENARIO), tmp_path / "run")
    opened = open_run(tmp_path / "run")
    assert opened.trace.sha256() == run.trace.sha256()
    assert opened.summary == run.summary
    assert opened.scenario == run.scenario
    assert opened.metrics.equals(run.metrics)
    assert opened.metrics.columns.tolist() == ["replica", "update", "time", "metric", "value"]
    assert np.array_equal(opened.final_iterates, run.final_iterates)


def test_a_trace_alone_is_opened_as_one(tmp_path: Path) -> None:
    alone = {key: SCENARIO[key] for key in ("cluster", "run")}
    asyncsim.run(build(alone), tmp_path / "run")
    assert sorted(contents(tmp_path / "run")) == [
        name for name in FILES if name not in ("iterates.npz", "metrics.parquet")
    ]
    assert open_run(tmp_path / "run").final_iterates.shape == (2, 0)


def test_the_same_scenario_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second, other = tmp_path / "first", tmp_path / "second", tmp_path / "other"
    asyncsim.run(build(SCENARIO), first)
    asyncsim.run(build(SCENARIO), second)
    asyncsim.run(build({**SCENARIO, "seed": 1}), other)
    assert contents(first) == contents(second)
    assert contents(first)["trace.parquet"] != contents(other)["trace.parquet"]


@pytest.mark.parametrize("name", [name for name in FILES if name != "provenance.json"])
@pytest.mark.parametrize("damage", ["cut short", "replaced"])
def test_a_damaged_run_is_refused_in_one_sentence(name: str, damage: str, run_folder: Path) -> None:
    file = run_folder / name
    file.write_bytes(file.read_bytes()[:20] if damage == "cut short" else b"something else")
    with pytest.raises((ResultsError, TraceError)) as caught:
        open_run(run_folder).metrics  # noqa: B018
    assert str(run_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["metrics.parquet", "iterates.npz", "summary.json"])
def test_a_run_that_lost_a_file_is_refused(name: str, run_folder: Path) -> None:
    (run_folder / name).unlink()
    with pytest.raises(ResultsError, match=str(run_folder)):
        open_run(run_folder)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="is no run directory"):
        open_run(tmp_path / "nothing")
    with pytest.raises(ResultsError, match="is no run directory"):
        open_run(tmp_path)
    (tmp_path / "results.parquet").mkdir()
    with pytest.raises(ResultsError, match=r"is a sweep: read results\.parquet"):
        open_run(tmp_path)


def test_json_holds_no_nan(tmp_path: Path) -> None:
    value = {"a": [np.nan, np.float64(1.5), np.int64(2), (np.inf,)], "b": np.arange(2)}
    results.write_json(value, tmp_path / "file.json")
    assert results.read_json(tmp_path / "file.json") == {"a": [None, 1.5, 2, [None]], "b": [0, 1]}

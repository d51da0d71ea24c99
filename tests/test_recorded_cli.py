"""Real runs from the command line: what is kept, how they are replayed, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import asyncsim
from asyncsim import cli, experiment, pictures
from asyncsim.results import read_trace, write_run, write_trace
from asyncsim.scenario import load
from asyncsim.trace import Trace

ROOT = Path(__file__).parent.parent
REAL = sorted((ROOT / "scenarios").glob("real_*.toml"))

SMALL = """
name = "small"
seed = 3
cluster.time_unit = "ms"
problem = { kind = "quadratic", eigenvalues = [1.0, 2.0, 3.0], noise = 0.1 }
method = { kind = "sgd", step = 0.05 }
run = { source = "record", backend = "threads", wait = "sleep", updates = 80 }
[[cluster.workers]]
count = 2
service = { law = "exponential", mean = 1.0 }
"""

#: Something happens to worker 1 at its draw 5; the file stands beside the scenario, and nowhere else.
OWN = """
import os, signal, sys, time
from pathlib import Path
import numpy as np

def wait_for_the_death_of(place):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.kill(int(place.read_text()), 0)
        except ProcessLookupError:  # missed by its parent, too
            return
        except FileNotFoundError:
            pass
        time.sleep(0.005)

class Bowl:
    dimension = 3
    def __init__(self, happens="nothing", place=""):
        self.happens, self.place = happens, place
    def initial(self, seed, replica):
        return np.ones((*np.shape(replica), 3))
    def value(self, x):
        if self.happens == "unmeasurable":
            raise ArithmeticError("no value")
        return 0.5 * (x**2).sum(axis=-1)
    def gradient(self, x):
        return x
    def stochastic_gradient(self, x, row):
        if row.update < 0 and row.worker == 0 and row.draw > 25 and self.happens == "die":
            wait_for_the_death_of(Path(self.place))
        if row.update < 0 and (row.worker, row.draw) == (1, 5):  # not in a replay
            if self.happens == "raise":
                raise ZeroDivisionError("a gradient of the user's own")
            if self.happens == "die":
                Path(self.place + "-new").write_text(str(os.getpid()))
                os.rename(self.place + "-new", self.place)
                os.kill(os.getpid(), signal.SIGKILL)
            if self.happens == "say":
                with open(self.place, "w") as pipe:
                    pipe.write("here")
        return x
"""


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Drawing takes longer than the runs; `test_pictures_show_what_there_is` has it."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr(pictures, "draw_run", lambda run, folder: [])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A scenario with a problem of the user's own in a module beside it, whose name no other test uses."""
    name = f"bowl_{re.sub('[^a-z0-9]', '_', tmp_path.name)}"
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / f"{name}.py").write_text(OWN)
    path = tmp_path / "beside" / "own.toml"
    path.write_text(re.sub("problem = .*", f'problem = {{ kind = "{name}:Bowl" }}', SMALL))
    return path


def always(own: Path) -> None:
    """Let it happen at every gradient."""
    module = next(own.parent.glob("bowl_*.py"))
    module.write_text(OWN.replace("(row.worker, row.draw) == (1, 5)", "True"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory, not to be changed; every gradient but a worker's first is stale."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "small.toml").write_text(SMALL.replace('"ms"', '"ms"\ncluster.server.reply = "before_apply"'))
    invoke("run", folder / "small.toml", "--out", folder / "run", "--quiet", "--set", "run.replicas=2")
    return folder / "run"


# --- record and replay


@pytest.mark.parametrize("backend", ["threads", "queue", "shared_memory"])
def test_what_was_recorded_is_replayed_to_the_bit(backend: str, small: Path, tmp_path: Path) -> None:
    result = invoke("run", small, "--out", tmp_path / "run", "--set", f"run.backend={backend}")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"recorded on {backend.replace('_', ' ')}; replay: identical\n" in result.stdout
    assert re.search(r"time \[ms\] +\d", result.stdout)  # not virtual
    assert re.search(r"service time \[ms\]: mean +[\d.]+ +1\n", result.stdout)
    said = invoke("replay", tmp_path / "run")
    assert (said.exit_code, said.stdout) == (0, "identical in all 80 updates\n")
    about = asyncsim.open_run(tmp_path / "run").summary["recorded"]
    assert (about["backend"], about["ended_early"], about["deaths"]) == (backend, None, [])
    assert 0 < about["share_computing"] <= 1
    again = invoke("run", small, "--out", tmp_path / "run")
    assert again.stderr.endswith("holds a complete run; choose another --out, or overwrite it with --force\n")


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_shipped_scenarios_replay_to_the_bit(path: Path, tmp_path: Path) -> None:
    scenario = load(path)
    assert scenario.run.source == "record"
    fewer = {
        "cluster.workers.0.count": 2,
        "run.updates": 25,
        "run.warmup": 0,
        "run.replicas": min(scenario.run.replicas, 3),
    }
    if scenario.run.wait != "none":
        fewer["cluster.workers.0.service.mean"] = 1.0
    settings = [word for key, value in fewer.items() for word in ("--set", f"{key}={value}")]
    result = invoke("run", path, "--out", tmp_path / "run", *settings)
    assert "replay: identical" in result.stdout
    assert invoke("replay", tmp_path / "run").exit_code == 0
    if scenario.run.consistency == "block":
        assert "share of reads of mixed versions" in result.stdout


def test_hogwild_says_that_it_cannot(small: Path, tmp_path: Path) -> None:
    settings = ["--set", "run.backend=shared_memory", "--set", "run.consistency=hogwild"]
    run = invoke("run", small, "--out", tmp_path / "run", *settings)
    assert run.exit_code == 0
    said = invoke("replay", tmp_path / "run")
    assert said.exit_code == 1
    sentence = r"cannot be exact, as nobody locked what was read; the final iterates differ by at most [\d.e-]+\n"
    assert re.fullmatch(sentence, said.stdout)
    assert f"recorded on shared memory, hogwild; replay: {said.stdout}" in run.stdout


def test_the_first_lines_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell commands of docs/real.md, with shorter runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenarios").mkdir()
    shorter = (ROOT / "scenarios" / "real_staleness.toml").read_text()
    shorter = shorter.replace("mean = 20.0", "mean = 2.0").replace("1_600", "300").replace("count = 4", "count = 2")
    (tmp_path / "scenarios" / "real_staleness.toml").write_text(shorter)
    page = (ROOT / "docs" / "real.md").read_text()
    lines = page.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert [line.split()[1] for line in lines if line.startswith("asyncsim ")] == [
        *("run", "replay", "calibrate", "run", "compare", "run"),
    ]
    for line in lines:
        if line.startswith("asyncsim "):
            words = line.partition("#")[0].split()[1:]
            result = invoke(*words)
            assert result.exit_code == 0 or (words[0] == "compare" and result.exit_code == 1), line
            assert result.stderr == "", line
        else:
            subprocess.run(line, shell=True, check=True)
    assert asyncsim.open_run("runs/sixteen").trace.workers == 16


# --- a run directory that was tampered with


def change_version(folder: Path) -> None:
    """Let a gradient of replica 1 have been computed from another version."""
    trace = read_trace(folder / "trace.parquet")
    columns = {name: np.array(trace[name]) for name in trace.columns if not name.endswith("_time")}
    stale = trace["update"] > trace["read_version"]
    late = np.flatnonzero((trace["replica"] == 1) & (trace["update"] > 20) & stale)
    columns["read_version"][late[0]] += 1
    (folder / "expected").write_text(str(trace["update"][late[0]]))
    write_trace(Trace(columns, seed=trace.seed, workers=trace.workers, updates=trace.updates), folder / "trace.parquet")


def change_arrays(folder: Path, name: str, place: Any, what: Any) -> None:
    with np.load(folder / "iterates.npz") as arrays:
        kept = {key: np.array(array) for key, array in arrays.items()}
    kept[name][place] = what(kept[name][place])
    np.savez(folder / "iterates.npz", **kept)  # type: ignore[arg-type]


TAMPERED: dict[str, tuple[Any, str]] = {
    "a version read": (
        change_version,
        r"differs from update {expected} of replica 1 on; but the trace is not the one that the run wrote\n",
    ),
    "a checksum": (
        lambda folder: change_arrays(folder, "checksums_1", 31, lambda sums: sums ^ np.uint64(1)),
        r"differs from update 30 of replica 1 on\n",
    ),
    "the start": (
        lambda folder: change_arrays(folder, "checksums_0", 0, lambda sums: sums ^ np.uint64(1)),
        r"differs from the start of replica 0 on\n",
    ),
    "the final iterate": (
        lambda folder: change_arrays(folder, "final", (1, 2), lambda x: np.nextafter(x, 9.0)),
        r"differs: the final iterates differ by at most [\d.e-]+\n",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_is_found(what: str, recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(recorded, folder)
    assert invoke("replay", folder).stdout == "identical in all 160 updates\n"
    tamper, said = TAMPERED[what]
    tamper(folder)
    expected = folder / "expected"
    result = invoke("replay", folder)
    assert result.exit_code == 1
    said = said.replace("{expected}", expected.read_text() if expected.exists() else "")
    assert re.fullmatch(said, result.stdout), result.stdout


def test_a_run_that_lost_a_replica_is_damaged(recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(recorded, folder)
    with np.load(folder / "iterates.npz") as arrays:
        np.savez(folder / "iterates.npz", final=arrays["final"][:1])
    result = invoke("replay", folder)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {folder}: is damaged: iterates.npz does not have the 2 replicas of the trace\n"


# --- runs that end early


@pytest.mark.parametrize("backend", ["threads", "shared_memory"])
def test_an_exception_is_shown_and_what_there_is_is_kept(backend: str, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ["--set", "problem.happens=raise", "--set", f"run.backend={backend}", "--set", "run.updates=20000"]
    result = invoke("run", own, "--out", out, *settings)
    assert result.exit_code == 1
    assert result.stderr.startswith("failed: worker 1 failed at its draw 5:\nTraceback (most recent call last):\n")
    assert "ZeroDivisionError: a gradient of the user's own\n" in result.stderr
    assert result.stderr.endswith(f"the run ended early; what happened until then is kept in {out}\n")
    run = asyncsim.open_run(out)
    assert run.summary["recorded"]["ended_early"].startswith("worker 1 failed at its draw 5:")
    assert run.summary["recorded"]["replay"] == "identical"
    assert 0 < run.trace.updates[0] < 20_000
    assert invoke("replay", out).exit_code == 0  # where the user's module lies is known
    again = invoke("run", own, "--out", out)
    assert again.stderr == (
        f"error: {out}: holds a real run that ended early; choose another --out, or overwrite it with --force\n"
    )


@pytest.mark.parametrize("backend", ["queue", "manager", "shared_memory"])
def test_workers_find_the_module_beside_a_scenario_that_python_records(backend: str, own: Path) -> None:
    scenario = load(own, overrides={"run.backend": backend, "run.updates": 20})
    assert str(own.parent) not in sys.path
    assert asyncsim.record(scenario).ended is None
    assert asyncsim.record(load(own), backend=backend, replicas=[1]).ended is None
    assert str(own.parent) not in sys.path


@pytest.mark.parametrize(("death", "code"), [("continue", 0), ("stop", 1)])
def test_a_death_is_told_and_takes_the_theory_with_it(death: str, code: int, own: Path, tmp_path: Path) -> None:
    values = ["problem.happens=die", f"problem.place={tmp_path}/dead", f"run.on_worker_death={death}"]
    settings = [word for value in (*values, "run.updates=300", "run.backend=queue") for word in ("--set", value)]
    result = invoke("run", own, "--out", tmp_path / "run", *settings)
    assert result.exit_code == code
    run = asyncsim.open_run(tmp_path / "run")
    if death == "continue":
        assert "died on the way: worker 1\n" in result.stdout
        assert run.summary["recorded"]["deaths"] == [1]
        assert run.summary["theory"] == {}
    else:
        assert "worker 1 died (killed by signal 9); run.on_worker_death = 'stop'" in result.stderr
    assert invoke("replay", tmp_path / "run").stdout.startswith("identical in all ")


def test_a_run_that_ends_before_its_first_update_is_kept(own: Path, tmp_path: Path) -> None:
    always(own)
    result = invoke("run", own, "--out", tmp_path / "run", "--set", "problem.happens=raise")
    assert result.exit_code == 1
    assert "failed at its draw 0" in result.stderr
    run = asyncsim.open_run(tmp_path / "run")
    assert run.trace.updates.tolist() == [0]
    assert invoke("replay", tmp_path / "run").stdout == "identical in all 0 updates\n"


SHARED = {"locked": "threads", "block": "shared_memory", "hogwild": "shared_memory"}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("consistency", SHARED)
def test_a_run_of_no_updates_has_nothing_where_others_have_means(consistency: str, small: Path, tmp_path: Path) -> None:
    settings = {
        "run": f'{{ source = "record", backend = "{SHARED[consistency]}", time = 1e-9, warmup = 5, replicas = 2 }}',
        "run.consistency": consistency,
        "metrics": '{ record = ["loss", "momentum", "rate"], target = "loss < 0.5" }',
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    result = invoke("run", small, "--out", tmp_path / "run", *words)
    assert (result.exit_code, result.stderr) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["updates"] == 0
    assert [summary[name] for name in ("time", "throughput", "staleness")] == [None] * 3
    assert [summary["recorded"][name] for name in ("service_mean", "share_computing", "mixed_reads")] == [None] * 3
    assert [summary["target"][name] for name in ("reached", "updates", "time")] == [0, None, None]


def test_a_recording_survives_a_metric_that_fails(own: Path, tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="no value"):
        invoke("run", own, "--out", tmp_path / "run", "--set", "problem.happens=unmeasurable")
    run = asyncsim.open_run(tmp_path / "run")
    assert run.trace.updates.tolist() == [80]
    assert run.summary["recorded"]["replay"] == "not finished"
    assert run.summary["theory"] == {}  # only what the trace alone says
    assert run.summary["scenario_sha256"] == load(own, overrides={"problem.happens": "unmeasurable"}).sha256()
    mended = asyncsim.replay(run.trace, load(own).method, load(own).problem)
    assert mended.final_iterates.tobytes() == run.final_iterates.tobytes()


def test_ctrl_c_keeps_what_there_is(own: Path, tmp_path: Path) -> None:
    out, pipe = tmp_path / "run", tmp_path / "pipe"
    os.mkfifo(pipe)
    settings = ["problem.happens=say", f"problem.place={pipe}", "run.backend=queue", "run.updates=1_000_000"]
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-m", "asyncsim", "run", str(own), "--out", str(out), *(f"--set={s}" for s in settings)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert pipe.read_text() == "here"  # a worker computes its sixth gradient
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr == f"interrupted; what happened until then is kept in {out}\n"
    assert json.loads((out / "summary.json").read_text())["recorded"]["ended_early"] == "ended by SIGINT"
    run = asyncsim.open_run(out)
    assert 0 < run.trace.updates[0] < 1_000_000
    assert invoke("replay", out).stdout == f"identical in all {run.trace.updates[0]:,} updates\n"


@pytest.mark.parametrize("moment", ["while it is saved", "while it is replayed"])
def test_a_second_ctrl_c_cannot_lose_what_there_is(
    moment: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"while it is saved": "write_run", "while it is replayed": "finish"}[moment]
    then, struck = getattr(experiment, place), []

    def striking(*arguments: Any, **settings: Any) -> Any:
        struck.append(place)
        signal.raise_signal(signal.SIGINT)
        return then(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, place, striking)
        patch.setattr(cli, "_stage", interrupting)
        result = invoke("run", own, "--out", tmp_path / "run", "--set", "run.updates=1_000_000")
    assert struck == [place]
    assert (result.exit_code, result.stderr) == (
        130,
        f"interrupted; what happened until then is kept in {tmp_path / 'run'}\n",
    )
    about = asyncsim.open_run(tmp_path / "run").summary["recorded"]
    replayed = "identical" if moment == "while it is saved" else "not finished"
    assert (about["ended_early"], about["replay"]) == ("ended by SIGINT", replayed)
    assert invoke("replay", tmp_path / "run").stdout.startswith("identical in all ")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith((".partial", ".old"))] == []


@contextlib.contextmanager
def interrupting(name: str, total: int | None) -> Iterator[Any]:
    """Interrupt a recording at its first update."""
    yield lambda count: signal.raise_signal(signal.SIGINT) if name == "recording" else None


def test_a_signal_while_a_whole_recording_is_saved_is_heard_after_that(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def striking(*arguments: Any) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        write_run(*arguments)

    monkeypatch.setattr(experiment, "write_run", striking)
    assert invoke("run", small, "--out", tmp_path / "run").exit_code == 130
    about = asyncsim.open_run(tmp_path / "run").summary["recorded"]
    assert (about["ended_early"], about["replay"]) == (None, "identical")


# --- what is drawn, and what is refused


def test_pictures_show_what_there_is(small: Path, own: Path, tmp_path: Path) -> None:
    invoke("run", small, "--out", tmp_path / "run", "--quiet")
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"loss.png", "staleness.png", "timeline.png"}
    run = asyncsim.open_run(tmp_path / "run")
    assert run.scenario is not None
    assert pictures._law(run.scenario, 8)[0] == pytest.approx(1 / 2)  # waiting workers take the times of their law
    computing = {**run.scenario, "run": {**run.scenario["run"], "wait": "none"}}
    assert pictures._law(computing, 8) is None
    always(own)
    nothing = invoke("run", own, "--out", tmp_path / "nothing", "--set", "problem.happens=raise")
    assert nothing.exit_code == 1  # not an update: neither staleness nor timeline
    assert {path.name for path in (tmp_path / "nothing").glob("*.png")} == {"loss.png"}


def test_a_sweep_of_real_runs_is_refused(small: Path, tmp_path: Path) -> None:
    swept = tmp_path / "swept.toml"
    swept.write_text(SMALL + '\n[sweep]\n"method.step" = [0.1, 0.2]\n')
    result = invoke("run", swept, "--out", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {swept}: sweep: real runs would compete for the cores: record them one by one, with --set\n"
    )
    assert not (tmp_path / "run").exists()


def test_what_is_fitted_alone_can_be_opened(small: Path, tmp_path: Path) -> None:
    """A run without a metric of the model has an empty table of metrics."""
    settings = ["--set", 'metrics.record=["momentum"]', "--set", "run.replicas=2", "--set", "run.updates=20"]
    assert "momentum not fitted" in invoke("run", small, "--out", tmp_path / "run", *settings).stdout
    assert len(asyncsim.open_run(tmp_path / "run").metrics) == 0
    assert invoke("replay", tmp_path / "run").stdout == "identical in all 40 updates\n"

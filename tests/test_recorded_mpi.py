"""Real runs on MPI ranks: started for the run, or by a user; replayed to the bit, and in order whoever is killed."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import asyncsim
from asyncsim.scenario import Scenario, ScenarioError, build
from asyncsim.sources.recorded import Interrupted, mpi, mpi_rank
from asyncsim.sources.recorded.processes import environment
from asyncsim.trace import CANCELLED, LOST
from tests import real_problems

BESIDE = os.path.dirname(sys.executable)
MPIEXEC = shutil.which("mpiexec", path=BESIDE) or shutil.which("mpiexec")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIEXEC is None,
    reason="mpi4py or mpiexec is not installed: pip install 'asyncsim[mpi]'",
)

QUADRATIC = {"kind": "quadratic", "eigenvalues": [1.0, 2.0, 3.0]}
LONG = 1_000_000  # updates that nobody waits for


def scenario(*, workers: int = 3, mean: float = 0.002, policy: Any = None, problem: Any = None, **run: Any) -> Scenario:
    """Return a scenario that records on MPI ranks; durations are exponential, and spent sleeping."""
    return build(
        {
            "seed": 3,
            "cluster": {"workers": [{"count": workers, "service": {"law": "exponential", "mean": mean}}]},
            "policy": policy or {"kind": "async"},
            "problem": problem or QUADRATIC,
            "method": {"kind": "sgd", "step": 0.05},
            "run": {"source": "record", "backend": "mpi", "wait": "sleep", "updates": 60, **run},
        }
    )


def own(problem: Any, **settings: Any) -> Scenario:
    """Return a scenario with a problem of the user's own."""
    return scenario(**settings).model_copy(update={"problem": problem})


class Faulty(real_problems.Bowl):
    """A bowl that the server cannot begin with."""

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Raise."""
        raise ZeroDivisionError("the server's own")


def assert_replays(recorded: Scenario, recording: Any) -> None:
    run = asyncsim.replay(recording.trace, recorded.method, recorded.problem)
    assert run.final_iterates.tobytes() == recording.final_iterates.tobytes()


# --- who is there ---


def descendants(pid: int) -> dict[int, str]:
    """Return the processes that come from one: their command lines by process number."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
                commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: commands[child] for child in found - {pid}}


def ranks(pid: int) -> dict[int, int]:
    """Return the process of each rank that a process has started, without their guards."""
    family = {child: command for child, command in descendants(pid).items() if "mpi_rank" in command}
    found = {}
    for child in family:
        try:
            parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
            place = re.search(rb"\0PMI_RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_bytes())
        except OSError:
            continue
        if parent in family and place is not None:
            found[int(place[1])] = child
    return found


def segments() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("*") if path.name.startswith(("mpich", "ucx"))}


def comes_true(condition: Callable[[], bool]) -> bool:
    """Return whether something comes true in the time that a busy machine may take."""
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture(autouse=True)
def leave_nothing() -> Iterator[None]:
    """Hold every test here to leaving no processes, descriptors, folders and shared segments."""
    before, folders = segments(), set(Path("/tmp").glob("asyncsim-*"))
    files = len(os.listdir("/proc/self/fd"))
    yield
    assert not [command for command in descendants(os.getpid()).values() if "mpi" in command]
    left = segments() - before  # another test that runs beside this one has some for a moment
    assert comes_true(lambda: not left & segments())
    folders = set(Path("/tmp").glob("asyncsim-*")) - folders
    assert comes_true(lambda: not any(folder.exists() for folder in folders))
    assert len(os.listdir("/proc/self/fd")) <= files


# --- recording ---


POLICIES: dict[str, dict[str, Any]] = {
    "async": {"kind": "async"},
    "sync": {"kind": "sync"},
    "k_batch_async": {"kind": "k_batch_async", "k": 2},
    "ringmaster_cancel": {"kind": "ringmaster", "max_staleness": 1, "on_stale": "cancel"},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_every_family_of_policies_replays_to_the_bit(policy: str) -> None:
    recorded = scenario(policy=POLICIES[policy])
    made: list[int] = []
    recording = asyncsim.record(recorded, progress=made.append)
    assert recording.ended is None
    assert recording.trace.updates.tolist() == [60]
    assert sum(made) == 60
    assert_replays(recorded, recording)
    assert (CANCELLED in recording.trace["status"]) == (policy == "ringmaster_cancel")
    wrong = recorded.method.model_copy(update={"step": 0.06})
    assert (asyncsim.replay(recording.trace, wrong, recorded.problem).final_iterates != recording.final_iterates).any()


def test_random_gradients_and_replicas_replay_to_the_bit(tmp_path: Path) -> None:
    digits = real_problems.LateDigits(dataset="digits", batch=8, place=str(tmp_path))
    recorded = own(digits, wait="none", workers=2)
    recording = asyncsim.record(recorded, replicas=2)
    assert recording.trace.updates.tolist() == [60, 60]
    assert set(recording.trace["worker"].tolist()) == {0, 1}
    assert_replays(recorded, recording)


def test_big_models_go_both_ways() -> None:
    recorded = own(real_problems.Bowl(dimension=500_000), policy=POLICIES["ringmaster_cancel"], updates=30)
    recording = asyncsim.record(recorded)
    assert recording.ended is None
    assert_replays(recorded, recording)


def test_workers_import_no_more_than_they_need() -> None:
    assert asyncsim.record(own(real_problems.Nosy())).ended is None


def test_ranks_cannot_have_a_class_of_the_script() -> None:
    main = type("Mine", (real_problems.Bowl,), {"__module__": "__main__", "__qualname__": "Mine"})
    with pytest.raises(ScenarioError, match="class 'Mine' is defined in the script that runs"):
        asyncsim.record(own(main()))


def test_an_exception_in_a_worker_is_shown() -> None:
    ended = asyncsim.record(own(real_problems.Failing(worker=1, draw=2), updates=LONG)).ended
    assert ended is not None
    assert "worker 1 failed at its draw 2" in ended
    assert "a gradient of the user's own" in ended


def test_a_bad_start_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    from asyncsim.sources.recorded import mpiexec

    class Hasty(mpiexec.Parent):
        """Kills the first rank that says that it has come up."""

        def _hear(self, connection: Any) -> None:
            super()._hear(connection)
            if len(self.speaking) == 1 and not self.watched:
                os.kill(next(iter(self.speaking.values())), signal.SIGKILL)

    monkeypatch.setattr(mpiexec, "Parent", Hasty)
    recording = asyncsim.record(scenario(on_worker_death="continue"))
    assert "ended before the run began; run.on_worker_death is about ranks that have started" in str(recording.ended)
    assert recording.trace.updates.tolist() == [0]


def test_an_exception_in_the_server_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError, match="the server's own"):
        asyncsim.record(own(Faulty()))


def test_a_hanging_worker_does_not_outlive_the_run() -> None:
    assert asyncsim.record(own(real_problems.Hanging(worker=1, draw=2))).ended is None


# --- killing ---


def test_a_run_goes_on_without_a_killed_worker(tmp_path: Path) -> None:
    recorded = own(real_problems.Ended(worker=1, draw=3, place=tmp_path, until="gone"), updates=1500)
    recording = asyncsim.record(recorded)
    trace = recording.trace
    assert recording.ended is None
    assert trace.updates.tolist() == [1500]
    assert trace["draw"][trace["worker"] == 1].max() == 3
    assert trace["status"][(trace["worker"] == 1) & (trace["draw"] == 3)].tolist() == [LOST]
    assert [(worker, kind) for _, _, worker, kind in trace.events] == [(1, "crash")]
    assert_replays(recorded, recording)


def test_a_run_stops_with_a_killed_worker_if_asked_to() -> None:
    recorded = own(real_problems.Ended(worker=1, draw=3), updates=LONG, on_worker_death="stop")
    recording = asyncsim.record(recorded)
    assert recording.ended is not None
    assert recording.ended.startswith("worker 1 died")
    assert recording.trace.updates[0] > 3
    assert_replays(recorded, recording)


def test_what_rank_0_has_reported_outlives_it() -> None:
    recorded = scenario(updates=LONG)

    def kill(made: int) -> None:
        process = ranks(os.getpid()).get(0)
        if process is not None:
            os.kill(process, signal.SIGKILL)

    recording = asyncsim.record(recorded, progress=kill)
    assert recording.ended is not None
    assert "rank 0, died" in recording.ended
    assert recording.trace.updates[0] > 0
    assert_replays(recorded, recording)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_trace(number: signal.Signals) -> None:
    recorded = scenario(updates=LONG, policy=POLICIES["sync"])
    with pytest.raises(Interrupted) as caught:
        asyncsim.record(recorded, progress=lambda made: signal.raise_signal(number))
    assert caught.value.recording.ended == f"ended by {number.name}"
    assert caught.value.recording.trace.updates[0] > 0
    assert_replays(recorded, caught.value.recording)


def run_script(folder: Path, text: str, *launcher: str) -> subprocess.Popen[str]:
    """Start a script of a user's own, with or without mpiexec."""
    script = folder / "script.py"
    lines = ["import asyncsim", "from tests.test_recorded_mpi import *", text]
    script.write_text("\n".join(lines))
    environ = {**environment(), "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    return subprocess.Popen([*launcher, sys.executable, str(script)], env=environ, stdout=-1, stderr=-1, text=True)


def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = run_script(tmp_path, "asyncsim.record(scenario(updates=LONG), progress=lambda n: print(n, flush=True))")
    assert script.stdout is not None
    assert script.stdout.readline().strip().isdigit()
    family = descendants(script.pid)
    assert len(ranks(script.pid)) == 4
    script.kill()
    script.communicate()
    assert comes_true(lambda: not any(Path(f"/proc/{process}").exists() for process in family))
    for line in family.values():  # the parent's folder, which it could not remove any more
        if "mpi_rank" in line:
            shutil.rmtree(Path(line.split()[-2]).parent, ignore_errors=True)


# --- a user's own job ---


def test_every_rank_of_a_users_own_job_gets_the_recording(tmp_path: Path) -> None:
    text = f"""
from mpi4py import MPI
recorded = scenario(policy=POLICIES["ringmaster_cancel"])
recording = asyncsim.record(recorded, replicas=2)
assert_replays(recorded, recording)
failed = asyncsim.record(own(real_problems.Failing(worker=1, draw=2), updates=LONG))
try:
    asyncsim.record(own(Faulty()))
except (ZeroDivisionError, RuntimeError) as error:
    assert "the server's own" in str(error)
    np.savez(f"{tmp_path}/{{MPI.COMM_WORLD.rank}}", x=recording.final_iterates, updates=recording.trace.updates,
             ended=failed.ended)
"""
    assert MPIEXEC is not None
    script = run_script(tmp_path, text, MPIEXEC, "-n", "4")
    output, errors = script.communicate()
    assert script.returncode == 0, output + errors
    found = [np.load(tmp_path / f"{rank}.npz") for rank in range(4)]
    assert all(one["x"].tobytes() == found[0]["x"].tobytes() for one in found)
    assert all(one["updates"].tolist() == [60, 60] for one in found)
    assert all("worker 1 failed at its draw 2" in str(one["ended"]) for one in found)


FILE = """
name = "ranks"
seed = 3
problem = { kind = "quadratic", eigenvalues = [1.0, 2.0, 3.0] }
method = { kind = "sgd", step = 0.05 }
run = { source = "record", backend = "mpi", wait = "sleep", updates = 60, replicas = 2 }
[[cluster.workers]]
count = 3
service = { law = "exponential", mean = 0.002 }
"""


def run_in_job(folder: Path, *settings: str) -> tuple[int, str, str]:
    """Run the file by a user's own mpiexec -n 4; return its exit code, output and errors."""
    assert MPIEXEC is not None
    (folder / "ranks.toml").write_text(FILE)
    command = [MPIEXEC, "-n", "4", sys.executable, "-m", "asyncsim", "run", "ranks.toml", "--out", "run", *settings]
    path = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])
    environ = {**environment(), "PYTHONPATH": path}
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_rank_0_writes_what_a_users_own_job_has_recorded(tmp_path: Path) -> None:
    code, output, errors = run_in_job(tmp_path)
    assert (code, errors) == (0, "")
    assert output.count("recorded on mpi; replay: identical") == 1
    run = asyncsim.open_run(tmp_path / "run")
    assert run.trace.updates.tolist() == [60, 60]
    assert run.summary["recorded"]["replay"] == "identical"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranks.toml", "run"]
    code, output, errors = run_in_job(tmp_path)
    assert (code, output) == (2, "")
    assert errors.count("error: run: holds a complete run") == 1


def test_ranks_do_not_all_do_the_same(tmp_path: Path) -> None:
    code, output, errors = run_in_job(tmp_path, "--set", "run={ updates = 60 }")
    assert (code, output) == (2, "")
    assert errors.count("error: an MPI job of 4 ranks would make the same run 4 times; start it without mpiexec") == 1
    assert not (tmp_path / "run").exists()


def test_one_rank_writes_the_run_of_a_script(tmp_path: Path) -> None:
    text = f"""
run = asyncsim.run(scenario(), "{tmp_path}/run")
assert run.summary["recorded"]["replay"] == "identical"
"""
    assert MPIEXEC is not None
    script = run_script(tmp_path, text, MPIEXEC, "-n", "4")
    output, errors = script.communicate()
    assert script.returncode == 0, output + errors
    assert asyncsim.open_run(tmp_path / "run").trace.updates.tolist() == [60]


def test_a_users_own_job_needs_a_rank_for_each_worker_and_one(tmp_path: Path) -> None:
    assert MPIEXEC is not None
    script = run_script(tmp_path, "asyncsim.record(scenario(workers=3))", MPIEXEC, "-n", "3")
    output, errors = script.communicate()
    assert script.returncode != 0
    assert "3 workers and a server are 4 ranks, but this MPI job has 3" in output + errors


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(ScenarioError, match=r"mpiexec.*pip install 'asyncsim\[mpi\]'"):
            asyncsim.record(scenario())
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ScenarioError, match=r"mpi4py.*pip install 'asyncsim\[mpi\]'"):
        asyncsim.record(scenario())


# --- where MPI does not come back ---


class Told:
    """A connection, or a reporter, that notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.connection = self

    def send(self, message: Any) -> None:
        self.heard.append(message)

    def report(self) -> None:
        self.heard.append("report")


def test_a_send_that_never_returns_ends_the_run_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in a hundred deaths MPICH does so; here a thread stands in for it, and a process that has ended."""
    monkeypatch.setattr(mpi_rank, "PATIENCE", 0.05)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, sent, told = threading.Event(), threading.Event(), Told()
    communicator = SimpleNamespace(isend=lambda what, dest: sent.set() or left.wait(60))
    world = SimpleNamespace(pids=[os.getpid(), os.getpid(), gone.pid], size=3, lost=set(), communicator=communicator)
    ranks = mpi.Ranks(world, interrupts=False)
    stuck = threading.Thread(target=ranks._isend, args=(1, None))
    stuck.start()
    assert sent.wait(60)
    mpi_rank.watch(ranks, told, left.set)
    stuck.join(60)
    assert told.heard[0] == "report"
    assert re.search("worker 1 died, and MPI does not come back", told.heard[1].ended)


@pytest.mark.parametrize(("alive", "inside"), [(True, True), (False, False)], ids=["all live", "nothing is sent"])
def test_nobody_is_caught(alive: bool, inside: bool) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    world = SimpleNamespace(pids=[os.getpid(), os.getpid() if alive else gone.pid], size=2, lost=set())
    ranks = mpi.Ranks(world, interrupts=False)
    ranks.inside = -math.inf if inside else math.inf
    assert ranks.caught(0.0) is None


# --- at any moment ---


@pytest.mark.slow
@pytest.mark.parametrize("death", ["continue", "stop"])
def test_a_worker_may_be_killed_at_any_moment(death: str) -> None:
    """Fifty kills each, half of them while the ranks come up; a run that ends by one has ended within 2 seconds."""
    moments = np.random.default_rng(7)
    slowest: dict[str, float] = {}
    ends = []
    for kill in range(50):
        recorded = own(real_problems.Bowl(dimension=2000), updates=LONG, time=1.5, on_worker_death=death)
        rank, delay, early = int(moments.integers(1, 4)), float(moments.uniform(0.0, 1.0)), kill % 2 == 0
        begun, killed = threading.Event(), []

        def strike(rank: int = rank, delay: float = delay, begun: Any = begun, killed: list[float] = killed) -> None:
            assert begun.wait(60)
            assert comes_true(lambda: rank in ranks(os.getpid()))
            time.sleep(delay)
            killed.append(time.monotonic())
            os.kill(ranks(os.getpid())[rank], signal.SIGKILL)

        if early:
            begun.set()
        thread = threading.Thread(target=strike)
        thread.start()
        recording = asyncsim.record(recorded, progress=lambda made, begun=begun: begun.set())
        end = time.monotonic()
        thread.join()
        ends.append(re.sub(r"\d+", "N", str(recording.ended)))
        if recording.ended is not None:  # asked to stop, or killed before it began
            slowest[ends[-1]] = max(slowest.get(ends[-1], 0.0), end - killed[0])
        assert_replays(recorded, recording)
    print(f"\n{death}:", {end: (ends.count(end), round(slowest.get(end, 0.0), 2)) for end in set(ends)})
    assert max(slowest.values()) < 2.0

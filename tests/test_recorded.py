"""Real runs: what is recorded is a valid trace, and replaying it gives the same model to the bit."""

from __future__ import annotations

import gc
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from multiprocessing.managers import BaseProxy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncsim
from asyncsim.scenario import Scenario, ScenarioError, build
from asyncsim.sources.recorded import Interrupted
from asyncsim.trace import APPLIED, CANCELLED, DISCARDED, LOST
from tests import real_problems
from tests.real_problems import LAST

BACKENDS = ["threads", "queue", "manager", "shared_memory"]

QUADRATIC = {"kind": "quadratic", "eigenvalues": [1.0, 2.0, 3.0]}
NOISY = {"kind": "quadratic", "eigenvalues": [1.0, 2.0, 3.0], "noise": 0.1}
DIGITS = {"kind": "softmax", "dataset": "digits", "batch": 8}

#: Updates that a run does not come to before what it waits for, however busy the machine is.
LONG = 20_000

METHODS = {
    "plain": {},
    "momentum": {"momentum": 0.5},
    "nesterov": {"momentum": 0.5, "nesterov": True},
    "inverse_time": {"step_rule": "inverse_time"},
    "staleness": {"step_rule": "staleness"},
    "concurrency": {"step_rule": "concurrency"},
    "adaptive_1": {"step_rule": "adaptive_1"},
    "adaptive_2": {"step_rule": "adaptive_2"},
    "projection": {"projection": {"set": "ball", "radius": 0.5}},
}

POLICIES: dict[str, dict[str, Any]] = {
    "async": {"kind": "async"},
    "sync": {"kind": "sync"},
    "k_sync": {"kind": "k_sync", "k": 2},
    "k_batch_sync": {"kind": "k_batch_sync", "k": 3},
    "k_async": {"kind": "k_async", "k": 2},
    "k_batch_async": {"kind": "k_batch_async", "k": 3},
    "rennala": {"kind": "rennala", "batch": 3},
    "ringmaster": {"kind": "ringmaster", "max_staleness": 1},
    "ringmaster_cancel": {"kind": "ringmaster", "max_staleness": 1, "on_stale": "cancel"},
}


def scenario(
    *, workers: int = 3, mean: float = 0.001, policy: Any = None, problem: Any = None, method: Any = None, **run: Any
) -> Scenario:
    """Return a scenario that records; durations are exponential unless a law is given, and spent sleeping."""
    reply = run.pop("reply", "after_apply")
    service = run.pop("service", {"law": "exponential", "mean": mean})
    return build(
        {
            "seed": 3,
            "cluster": {
                "workers": [{"count": workers, "service": service}],
                "server": {"reply": reply},
            },
            "policy": policy or {"kind": "async"},
            "problem": problem or QUADRATIC,
            "method": {"kind": "sgd", "step": 0.05, **(method or {})},
            "run": {"source": "record", "wait": "sleep", "updates": 120, **run},
        }
    )


def assert_replays(recorded: Scenario, recording: Any) -> None:
    """Assert that a replay of the recorded trace ends with the recorded bits, replica by replica."""
    run = asyncsim.replay(recording.trace, recorded.method, recorded.problem)
    assert run.final_iterates.tobytes() == recording.final_iterates.tobytes()


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_replay_to_the_bit_under_every_policy(policy: str) -> None:
    recorded = scenario(backend="threads", policy=POLICIES[policy], problem=NOISY)
    recording = asyncsim.record(recorded)
    assert recording.ended is None
    assert recording.trace.updates.tolist() == [120]
    assert_replays(recorded, recording)
    status = recording.trace["status"]
    unused = {CANCELLED, DISCARDED} if POLICIES[policy].get("on_stale") == "cancel" or "sync" in policy else {DISCARDED}
    assert set(status[status != APPLIED].tolist()) <= unused


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["threads", "shared_memory"])
def test_every_method_replays_to_the_bit(backend: str, method: str) -> None:
    recorded = scenario(backend=backend, method=METHODS[method], workers=2, updates=60)
    recording = asyncsim.record(recorded)
    assert_replays(recorded, recording)


@pytest.mark.parametrize("problem", ["noisy", "digits"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_gradients_replay_to_the_bit(backend: str, problem: str, tmp_path: Path) -> None:
    recorded = scenario(backend=backend, problem=NOISY if problem == "noisy" else DIGITS, workers=2, updates=60)
    late = {"noisy": real_problems.LateQuadratic, "digits": real_problems.LateDigits}[problem]
    recorded = recorded.model_copy(update={"problem": late(**recorded.problem._given(), place=str(tmp_path))})
    recording = asyncsim.record(recorded)
    assert_replays(recorded, recording)
    assert recording.trace.workers == 2
    assert set(recording.trace["worker"].tolist()) == {0, 1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_ringmaster_discards_what_is_stale(backend: str, tmp_path: Path) -> None:
    recorded = own(real_problems.Late(place=tmp_path), backend=backend, policy=POLICIES["ringmaster"], workers=4)
    recording = asyncsim.record(recorded)
    assert recording.trace.staleness().max() <= 1
    assert (recording.trace["status"] == DISCARDED).any()
    assert_replays(recorded, recording)


def test_a_changed_trace_does_not_replay(tmp_path: Path) -> None:
    recorded = own(real_problems.Late(place=tmp_path), backend="threads", workers=4)
    trace = asyncsim.record(recorded).trace
    columns = {
        name: np.array(trace[name]) for name in ("replica", "worker", "draw", "read_version", "update", "status")
    }
    late = np.flatnonzero(trace["update"] - trace["read_version"] > 0)[0]
    columns["read_version"][late] += 1
    other = asyncsim.Trace(columns, seed=trace.seed, workers=4, updates=trace.updates)
    one, two = (asyncsim.replay(t, recorded.method, recorded.problem) for t in (trace, other))
    assert one.final_iterates.tobytes() != two.final_iterates.tobytes()


def test_replies_before_updates_make_gradients_one_staler() -> None:
    """A worker goes on from the version before its update in place of the one after it, so the mean is M, not M − 1."""
    for reply, later in (("before_apply", 0), ("after_apply", 1)):
        trace = asyncsim.record(scenario(backend="threads", workers=4, reply=reply)).trace
        seen = 0
        for worker in range(4):
            mine = trace["worker"] == worker
            update, read = trace["update"][mine], trace["read_version"][mine]
            assert (read[1:] == update[:-1] + later).all()
            seen += read[1:].size
        assert seen >= 120 - 4


@pytest.mark.parametrize("wait", ["sleep", "spin"])
def test_a_waiting_worker_takes_the_simulated_service_times(wait: str) -> None:
    """Some take nothing and some take long, so that a gradient of no time is never as late as a long one of others."""
    service = {"law": "empirical", "values": [0.0, 0.0, 0.0, 0.2]}
    recorded = scenario(backend="threads", workers=2, updates=40, wait=wait, service=service)
    trace = asyncsim.record(recorded).trace

    def never_early(seed: int) -> bool:
        """Say whether every gradient took at least what it takes in a simulation; a machine may be late."""
        simulated = asyncsim.simulate(build({**recorded.resolved(), "seed": seed, "run": {"updates": 400}}))
        late = []
        for worker in (0, 1):
            real, drawn = ((t["done_time"] - t["start_time"])[t["worker"] == worker] for t in (trace, simulated))
            count = min(real.size, drawn.size)
            late.append((real[:count] >= drawn[:count] - 1e-6).all())
        return all(late)

    assert never_early(recorded.seed)
    assert not never_early(recorded.seed + 1)


def test_block_reads_mix_versions_and_replay_to_the_bit(tmp_path: Path) -> None:
    problem = real_problems.Torn(blocks=16, place=tmp_path, dimension=20_000)
    recorded = own(problem, backend="shared_memory", consistency="block", blocks=16, wait="none", updates=400)
    recording = asyncsim.record(recorded)
    reads = recording.trace.reads
    mixed = (reads != reads[:, :1]).any(axis=1)
    assert mixed[(recording.trace["worker"] == 1) & (recording.trace["draw"] == 6)].all()
    assert mixed.mean() >= 0.01  # four would do; the others wait for about twenty
    assert_replays(recorded, recording)
    whole = asyncsim.Trace(
        {name: recording.trace[name] for name in recording.trace.columns},
        seed=recording.trace.seed,
        workers=recording.trace.workers,
        updates=recording.trace.updates,
    )
    unmixed = asyncsim.replay(whole, recorded.method, recorded.problem)
    assert unmixed.final_iterates.tobytes() != recording.final_iterates.tobytes()


def test_hogwild_says_that_it_cannot_be_replayed() -> None:
    recorded = scenario(backend="shared_memory", consistency="hogwild", workers=2)
    recording = asyncsim.record(recorded)
    assert not recording.replayable
    assert recording.trace.updates.tolist() == [120]
    run = asyncsim.replay(recording.trace, recorded.method, recorded.problem)
    assert np.abs(run.final_iterates - recording.final_iterates).max() < 0.1  # from a start of 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_time_limit_ends_a_run(backend: str) -> None:
    recorded = scenario(backend=backend, workers=2, updates=None, time=0.3)
    recording = asyncsim.record(recorded)
    trace = recording.trace
    assert recording.ended is None
    assert trace["arrive_time"].max(initial=0.0) <= 0.3
    simulated = asyncsim.simulate(build({**recorded.resolved(), "run": {"time": 0.3}}))
    assert trace.updates[0] <= simulated.updates[0]  # a machine may be late, and is never early


def test_a_target_ends_a_run() -> None:
    recorded = scenario(backend="threads", workers=2, updates=5000, stop_when="loss < 0.5")
    recording = asyncsim.record(recorded)
    assert recorded.problem is not None
    assert recorded.problem.value(recording.final_iterate) < 0.5
    assert recording.trace.updates[0] < 5000
    assert recording.trace.events[-1][3] == "stop"


def test_replicas_run_one_after_another() -> None:
    recorded = scenario(backend="threads", workers=2, replicas=3, problem=NOISY)
    recording = asyncsim.record(recorded)
    assert recording.trace.replicas.tolist() == [0, 1, 2]
    assert_replays(recorded, recording)
    assert not (recording.final_iterates[0] == recording.final_iterates[1]).all()


def test_divergence_is_replayed_too() -> None:
    recorded = scenario(backend="threads", workers=2, method={"step": 1e200}, updates=50)
    recording = asyncsim.record(recorded)
    assert recording.trace.updates[0] < 50
    assert np.isfinite(recording.final_iterate).all()
    assert_replays(recorded, recording)


# --- workers that fail and workers that die ---


def own(problem: Any, **run: Any) -> Scenario:
    """Return a scenario with a problem of the user's own."""
    made = scenario(**{"mean": 0.002, **run})
    return made.model_copy(update={"problem": problem})


def unreachable() -> dict[str, tuple[Any, str]]:
    """Return problems that worker processes cannot have, and what is said of them."""

    class Local(real_problems.Bowl):
        pass

    main = type("Mine", (real_problems.Bowl,), {"__module__": "__main__", "__qualname__": "Mine"})
    locked = real_problems.Bowl()
    locked.lock = threading.Lock()
    return {
        "script": (main(), "class 'Mine' is defined in the script that runs, or in a notebook, where worker processes"),
        "function": (Local(), f"class 'unreachable.<locals>.Local' of {__name__} is defined within a function"),
        "lock": (locked, "cannot be handed to worker processes: cannot pickle '_thread.lock' object; use backend"),
    }


@pytest.mark.parametrize("case", unreachable())
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_workers_cannot_have_is_refused_in_a_sentence(backend: str, case: str) -> None:
    problem, said = unreachable()[case]
    recorded = own(problem, backend=backend, workers=2, updates=20)
    if backend == "threads":
        assert_replays(recorded, asyncsim.record(recorded))
        return
    with pytest.raises(ScenarioError) as refusal:
        asyncsim.record(recorded)
    assert said in str(refusal.value)


def test_workers_import_no_more_than_they_need() -> None:
    recording = asyncsim.record(own(real_problems.Nosy(), backend="queue", workers=2, wait="sleep"))
    assert recording.ended is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exception_in_a_worker_is_shown(backend: str) -> None:
    recording = asyncsim.record(own(real_problems.Failing(worker=1, draw=5), backend=backend, updates=LONG))
    assert recording.ended is not None
    assert "worker 1 failed at its draw 5" in recording.ended
    assert "ZeroDivisionError: a gradient of the user's own" in recording.ended
    assert 0 < recording.trace.updates[0] < LONG


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_calls_exit_ends_the_run(backend: str) -> None:
    recording = asyncsim.record(own(real_problems.Exiting(worker=1, draw=5), backend=backend, updates=LONG))
    assert "worker 1 failed at its draw 5" in str(recording.ended)
    assert "SystemExit: 3" in str(recording.ended)


@pytest.mark.parametrize("backend", ["queue", "manager", "shared_memory"])
def test_a_bad_start_is_no_death(backend: str) -> None:
    recorded = own(real_problems.Missing(), backend=backend, on_worker_death="continue", workers=2)
    recording = asyncsim.record(recorded)
    ended = str(recording.ended)
    assert re.match(r"worker [01] could not start, which run.on_worker_death is not about:\nTraceback", ended)
    assert "ModuleNotFoundError: No module named 'not_on_this_machine'" in ended
    assert recording.trace.updates.tolist() == [0]
    assert recording.trace.events == ()


@pytest.mark.parametrize("death", ["continue", "restart", "stop"])
@pytest.mark.parametrize("backend", ["queue", "manager", "shared_memory"])
def test_a_killed_worker_is_dealt_with_as_asked(backend: str, death: str, tmp_path: Path) -> None:
    problem = real_problems.Ended(worker=1, draw=5, place=tmp_path, until="back" if death == "restart" else "gone")
    recorded = own(problem, backend=backend, on_worker_death=death, updates=LAST)
    check_death(recorded, asyncsim.record(recorded), death)


#: Where in shared memory a worker is killed, and whether its draw was an update nevertheless.
KILLS = {
    "holding the right to update": ("locked", LOST),
    "before the commit": ("locked", LOST),
    "after the commit": ("locked", APPLIED),
    "before a model lies ready": ("block", LOST),
    "after a model lies ready": ("block", APPLIED),
    "writing a block": ("block", APPLIED),
    "before the commit of blocks": ("block", APPLIED),
    "after the commit of blocks": ("block", APPLIED),
    "reading the first block": ("block", None),
    "reading another block": ("block", LOST),
}


def in_shared_memory(consistency: str) -> dict[str, Any]:
    blocks = {"blocks": 4} if consistency == "block" else {}
    return {"backend": "shared_memory", "consistency": consistency, "updates": LAST, **blocks}


@pytest.mark.parametrize("moment", KILLS)
def test_a_worker_killed_at_any_moment_leaves_a_whole_model(moment: str, tmp_path: Path) -> None:
    consistency, fate = KILLS[moment]
    when = moment.removesuffix(" of blocks")
    problem = real_problems.Ended(worker=1, draw=5, moment=when, place=tmp_path, until="gone", dimension=8)
    recorded = own(problem, **in_shared_memory(consistency))
    # Who dies reading has computed its draw 5 before, and has no draw 6 unless it had begun to read for it.
    check_death(recorded, asyncsim.record(recorded), "continue", *((5, fate) if "reading" not in moment else (6, fate)))


def check_death(recorded: Scenario, recording: Any, death: str, draw: int = 5, fate: int | None = LOST) -> None:
    """Assert what a death at a draw of worker 1 must leave behind, the draw having met its fate."""
    trace = recording.trace
    mine = trace["worker"] == 1
    if death == "stop":
        assert "worker 1 died (killed by signal 9)" in recording.ended
        assert mine.sum() == draw
    else:
        assert recording.ended is None
        assert trace.updates.tolist() == [LAST]
        assert [(worker, kind) for _, _, worker, kind in trace.events if kind == "crash"] == [(1, "crash")]
        assert trace["status"][mine & (trace["draw"] == draw)].tolist() == [fate] * (fate is not None)
        assert (trace["draw"][mine].max() > draw) == (death == "restart")
    assert_replays(recorded, recording)


@pytest.mark.parametrize(
    ("consistency", "moment"), [("locked", "after the last commit"), ("block", "after the last model lies ready")]
)
def test_a_run_is_over_though_nobody_lived_to_say_so(consistency: str, moment: str) -> None:
    problem = real_problems.Ended(worker=None, draw=5, moment=moment, dimension=8)
    recorded = own(problem, **in_shared_memory(consistency))
    recording = asyncsim.record(recorded)
    assert recording.ended is None
    assert recording.trace.updates.tolist() == [LAST]
    assert_replays(recorded, recording)


@pytest.mark.parametrize("backend", ["queue", "manager", "shared_memory"])
def test_nobody_left_ends_the_run(backend: str) -> None:
    recorded = own(real_problems.Ended(worker=None, draw=5), backend=backend)
    recording = asyncsim.record(recorded)
    assert "died (killed by signal 9)" in str(recording.ended)
    assert recording.trace.updates[0] == 15 if backend != "manager" else recording.trace.updates[0] in range(10, 16)
    assert_replays(recorded, recording)


def test_a_policy_that_needs_all_workers_ends_with_one() -> None:
    problem = real_problems.Ended(worker=1, draw=5)
    recording = asyncsim.record(own(problem, backend="queue", policy=POLICIES["sync"]))
    assert "takes 3 gradients of different workers, of which 2 are left" in str(recording.ended)
    assert recording.trace.updates.tolist() == [5]


def test_a_policy_that_needs_all_workers_waits_for_one_that_is_started_again() -> None:
    problem = real_problems.Ended(worker=1, draw=5)
    recorded = own(problem, backend="queue", policy=POLICIES["sync"], on_worker_death="restart", updates=20)
    recording = asyncsim.record(recorded)
    trace = recording.trace
    assert recording.ended is None
    assert all(sorted(trace["worker"][trace["update"] == update]) == [0, 1, 2] for update in range(20))
    assert_replays(recorded, recording)


@pytest.mark.parametrize("moment", ["at once", "later"])
def test_a_run_without_its_manager_ends(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = started_processes(monkeypatch)

    def progress(updates: int) -> None:
        if moment == "at once":
            next(process for module, process in started if module == "manager").kill()
        else:
            for _, process in started:  # the manager is the first; then it is known before its workers are missed
                process.kill()
                process.wait()

    recorded = own(real_problems.Bowl(), backend="manager", on_worker_death="restart", updates=LONG)
    recording = asyncsim.record(recorded, progress=progress)
    assert recording.ended == "the manager's process is gone"
    assert 0 < recording.trace.updates[0] < LONG
    assert_replays(recorded, recording)


def started_processes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Return a list that will have the module and the process of each that is started."""
    from asyncsim.sources.recorded import manager, processes

    start, started = processes.start_process, []

    def noting(module: str, *arguments: Any, **settings: Any) -> Any:
        started.append((module, start(module, *arguments, **settings)))
        return started[-1][1]

    for place in (manager, processes):
        monkeypatch.setattr(place, "start_process", noting)
    return started


STILL: dict[str, Any] = {
    "hanging": real_problems.Hanging,
    "stopped": partial(real_problems.Ended, number=signal.SIGSTOP),
}


@pytest.mark.parametrize("how", STILL)
@pytest.mark.parametrize("backend", ["queue", "manager", "shared_memory"])
def test_a_worker_that_never_comes_back_is_ended_with_the_run(backend: str, how: str, tmp_path: Path) -> None:
    recorded = own(STILL[how](worker=1, draw=5, place=tmp_path), backend=backend)
    recording = asyncsim.record(recorded)
    assert recording.ended is None
    assert recording.trace.updates.tolist() == [120]
    assert recording.trace["draw"][recording.trace["worker"] == 1].max() == 4
    assert_replays(recorded, recording)


def test_a_worker_stopped_with_the_right_to_update_stops_the_run_until_its_time_is_over() -> None:
    problem = real_problems.Ended(
        worker=1, draw=5, moment="holding the right to update", number=signal.SIGSTOP, dimension=8
    )
    recorded = own(problem, backend="shared_memory", updates=None, time=1.0)  # for which it has to live 10 ms
    recording = asyncsim.record(recorded)
    assert recording.ended is None
    assert recording.trace["draw"][recording.trace["worker"] == 1].max() == 4
    assert_replays(recorded, recording)


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Every test here: no child process, connection or nameless file is left."""
    before = belongings()
    yield
    gc.collect()
    assert belongings() == before


def belongings() -> tuple[list[int], list[str]]:
    """Return this process's children, and its connections and nameless files (Linux)."""
    opened = [os.readlink(file) for file in Path("/proc/self/fd").glob("*") if file.is_symlink()]
    return children(), sorted(name for name in opened if name.startswith(("socket:", "pipe:", "/memfd:")))


def children() -> list[int]:
    """Return the processes that this one has started (Linux)."""
    files = Path("/proc/self/task").glob("*/children")
    return sorted(int(word) for file in files for word in file.read_text().split())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("backend", ["queue", "manager", "shared_memory"])
def test_what_processes_share_has_no_name_that_could_be_left(backend: str) -> None:
    shared: set[str] = set()

    def progress(updates: int) -> None:
        maps = [Path(f"/proc/{child}/maps").read_text() for child in children()]
        shared.update(word for text in maps for word in text.split() if word.startswith(("/dev/shm", "/memfd")))

    asyncsim.record(own(real_problems.Bowl(), backend=backend), progress=progress)
    assert shared == ({"/memfd:asyncsim"} if backend == "shared_memory" else set())


def test_a_manager_s_address_is_forgotten_with_its_run() -> None:
    """The library keeps an entry of 2 KiB for each address, and every run has its own."""
    known: dict[Any, Any] = BaseProxy._address_to_local
    before = set(known)
    asyncsim.record(scenario(backend="manager", wait="none", updates=5))
    assert set(known) == before


# --- interrupts ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_signal_ends_a_run_in_order(backend: str, number: signal.Signals) -> None:
    handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    recorded = own(real_problems.Bowl(), backend=backend, updates=LONG)
    with pytest.raises(Interrupted, match=f"ended by {number.name}") as interrupt:
        asyncsim.record(recorded, progress=lambda updates: os.kill(os.getpid(), number))
    recording = interrupt.value.recording
    assert recording.ended == f"ended by {number.name}"
    assert 0 < recording.trace.updates[0] < LONG
    assert_replays(recorded, recording)
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("settings", [{"backend": "queue"}, {"backend": "manager"}, in_shared_memory("block")])
def test_a_signal_while_workers_start_ends_the_run(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from asyncsim.sources.recorded.processes import Processes

    def interrupted(self: Processes, worker: int, start: Any = Processes.start) -> None:
        start(self, worker)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Processes, "start", interrupted)
    recorded = own(real_problems.Bowl(), **settings)
    with pytest.raises(Interrupted) as interrupt:
        asyncsim.record(recorded)
    assert interrupt.value.recording.trace.updates.tolist() == [0]
    assert_replays(recorded, interrupt.value.recording)


def test_a_second_signal_interrupts_what_hears_none() -> None:
    heard = []

    def deaf(updates: int) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        heard.append("nothing")

    with pytest.raises(Interrupted):
        asyncsim.record(own(real_problems.Bowl(), backend="threads", updates=LONG), progress=deaf)
    assert heard == []


def test_a_second_signal_does_not_disturb_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from asyncsim.sources.recorded.processes import Processes

    def interrupted(self: Processes, end: Any = Processes.end) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        end(self)

    monkeypatch.setattr(Processes, "end", interrupted)
    recorded = own(real_problems.Bowl(), backend="shared_memory", updates=LONG)
    with pytest.raises(Interrupted) as interrupt:
        asyncsim.record(recorded, progress=lambda updates: os.kill(os.getpid(), signal.SIGINT))
    assert_replays(recorded, interrupt.value.recording)


ORPHANS = """
import sys
from tests.test_recorded import own, real_problems
import asyncsim
from asyncsim.sources.recorded import manager
start = manager.start_process
def saying(*arguments, **settings):
    process = start(*arguments, **settings)
    print(process.pid, flush=True)
    return process
manager.start_process = saying
asyncsim.record(own(real_problems.Hanging(worker=None, draw=5), backend=sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent, whatever they do")
@pytest.mark.parametrize("backend", ["queue", "manager", "shared_memory"])
def test_nobody_outlives_a_parent_that_is_killed(backend: str) -> None:
    """Also not a worker inside a library that lets no other Python code run."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", ORPHANS, backend]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        files = [os.pidfd_open(int(parent.stdout.readline())) for _ in range(3 + (backend == "manager"))]
        parent.kill()
    for file in files:
        assert select.select([file], [], [], real_problems.PATIENCE)[0]
        os.close(file)


# --- refusals ---

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "blocks_of_threads": ({"backend": "threads", "consistency": "block"}, "needs backend = 'shared_memory'"),
    "pinned_threads": ({"backend": "threads", "pin": True}, "threads can neither be pinned"),
    "restarted_rank": ({"backend": "mpi", "on_worker_death": "restart"}, "an MPI rank cannot be started again"),
    "sync_without_server": ({"backend": "shared_memory", "policy": POLICIES["sync"]}, "there is no server"),
    "blocks_unused": ({"backend": "shared_memory", "blocks": 4}, "belongs to consistency = 'block'"),
    "no_backend": ({}, "'backend' (threads, shared_memory, queue, manager, mpi)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_recorded_is_refused(case: str) -> None:
    settings, said = REFUSED[case]
    with pytest.raises(ScenarioError) as refusal:
        scenario(**settings)
    assert said in str(refusal.value)

"""Executors: every task once, whatever other tasks do to their process, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbances import Place

from asyncsim.executors import ExecutorError, Task, function_named, here
from asyncsim.executors.local import TRIES_AGAIN, _Waiting, local

FUNCTION = "disturbances:worker_function"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "place")
    yield place
    place.close()


def tasks(place: Place, names: str, group: str = "") -> list[Task]:
    return [Task(name, group or name, {"name": name, "folder": str(place.folder)}) for name in names.split()]


def done(place: Place) -> dict[str, list[int]]:
    """Return which processes did which task."""
    return {file.stem: [int(line) for line in file.read_text().split()] for file in place.folder.glob("*.done")}


# --- every task once ----------------------------------------------------------------------------------------------


def test_each_task_is_done_once_and_workers_are_kept(place: Place) -> None:
    outcomes = list(local(FUNCTION, tasks(place, "a b c d e"), jobs=2))
    assert sorted(task.key for task, _ in outcomes) == list("abcde")
    assert all(failure is None for _, failure in outcomes)
    workers = [pid for (pid,) in done(place).values()]
    assert 1 <= len(set(workers)) <= 2
    assert os.getpid() not in workers


def test_tasks_done_here_survive_what_raises(place: Place) -> None:
    place.set(a="raise", b="exit", c="memory")
    failures = {task.key: failure for task, failure in here(FUNCTION, tasks(place, "a b c d"))}
    said = {key: failure and failure.reason for key, failure in failures.items()}
    assert said == {"a": "ArithmeticError: poisoned", "b": "SystemExit: 3", "c": "MemoryError", "d": None}
    assert done(place) == {"d": [os.getpid()]}


def test_what_raises_costs_its_own_task_only(place: Place) -> None:
    place.set(a="raise", b="exit", c="memory")
    failures = {task.key: failure for task, failure in local(FUNCTION, tasks(place, "a b c d e"), jobs=1)}
    assert {key: failure and failure.reason for key, failure in failures.items()} == {
        "a": "ArithmeticError: poisoned",
        "b": "SystemExit: 3",
        "c": "MemoryError",
        "d": None,
        "e": None,
    }
    assert 'raise ArithmeticError("poisoned")' in failures["a"].traceback
    assert sorted(done(place)) == ["d", "e"]


def test_a_task_whose_worker_dies_is_tried_again(place: Place) -> None:
    place.set(b="die once")
    assert [failure for _, failure in local(FUNCTION, tasks(place, "a b c"), jobs=1)] == [None] * 3
    assert sorted(done(place)) == ["a", "b", "c"]


def test_a_task_that_ends_every_worker_fails_after_three_more_tries(place: Place) -> None:
    place.set(a="die")
    failures = {task.key: failure for task, failure in local(FUNCTION, tasks(place, "a b"), jobs=1)}
    assert failures["b"] is None
    assert failures["a"].reason.startswith(f"its worker died {1 + TRIES_AGAIN} times; at last it was ended by SIGKILL")
    assert sorted(done(place)) == ["b"]


#: A task that ends its worker: at once the first time, then as soon as there is a second note of where it is.
NOTED = """
import os, signal
def make():
    def task(data):
        try:
            open(data["file"], "x").close()
        except FileExistsError:
            print("a word of its own", flush=True)
            wait_for_a_second_note()
        os.kill(os.getpid(), signal.SIGKILL)
    return task
def wait_for_a_second_note():
    while os.pread(2, 1 << 16, 0).count(b"in wait_for_a_second_note") < 2:
        pass
"""


def test_a_task_that_is_killed_again_says_where_it_was(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process that the kernel ends cannot say any more, it has said before."""
    (tmp_path / "noted.py").write_text(NOTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("asyncsim.executors.local.TRIES_AGAIN", 1)
    task = Task("a", "", {"file": str(tmp_path / "begun")})
    ((_, failure),) = local("noted:make", [task], jobs=1)
    assert failure is not None
    assert failure.reason.startswith("its worker died 2 times; at last it was ended by SIGKILL")
    assert failure.traceback.count("in wait_for_a_second_note") == 1
    assert "Timeout" not in failure.traceback


def test_a_hanging_task_fails_and_says_where_it_hung(place: Place) -> None:
    place.set(a="hold")
    failures = {task.key: failure for task, failure in local(FUNCTION, tasks(place, "a b"), jobs=1, timeout=1.0)}
    assert failures["a"].reason == "took longer than 1 s"
    assert "in hold_at" in failures["a"].traceback
    assert failures["b"] is None
    with pytest.raises(ProcessLookupError):  # it is gone
        place.inside()


def test_a_worker_killed_from_outside_is_replaced(place: Place) -> None:
    place.set(a="hold once")
    outcomes = local(FUNCTION, tasks(place, "b a c"), jobs=1)
    assert next(outcomes)[0].key == "b"
    killed_later(place, signal.SIGKILL)
    assert [failure for _, failure in outcomes] == [None, None]
    assert len({pid for pids in done(place).values() for pid in pids}) == 2


def killed_later(place: Place, how: int) -> None:
    """Kill whoever is held next: from another thread, as the caller waits for it."""
    threading.Thread(target=lambda: os.kill(place.inside()[0], how), daemon=True).start()


def test_workers_that_cannot_start_are_given_up(place: Place) -> None:
    with pytest.raises(ExecutorError, match=r"(?s)workers die before they have started.*No module named 'no_such'"):
        list(local("no_such:function", tasks(place, "a"), jobs=1))


# --- who does what ------------------------------------------------------------------------------------------------


def test_tasks_of_one_group_go_to_one_worker_until_the_others_have_nothing_else() -> None:
    waiting = _Waiting([Task(name, name[0], {}) for name in ["a1", "a2", "a3", "a4", "b1", "c1"]])
    first, second = waiting.take("").key, waiting.take("").key
    assert (first, second) == ("a1", "b1")
    assert waiting.take("b").key == "c1"  # a group that nobody has begun
    assert waiting.take("a").key == "a2"
    assert waiting.take("c").key == "a3"  # nothing else is left: the group is split
    waiting.put_back(Task("a3", "a", {}))
    assert [waiting.take("a").key, waiting.take("a").key] == ["a3", "a4"]
    assert not waiting


def test_a_group_is_split_so_that_both_workers_are_inside_at_once(place: Place) -> None:
    place.set(a="hold once", b="hold once")
    outcomes = local(FUNCTION, tasks(place, "a b", group="same"), jobs=2)

    def both() -> None:
        pids = [place.inside()[0], place.inside()[0]]  # the second comes while the first is still held
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    threading.Thread(target=both, daemon=True).start()
    assert [failure for _, failure in outcomes] == [None, None]


# --- nobody is left behind ----------------------------------------------------------------------------------------


def test_leaving_early_ends_the_workers(place: Place) -> None:
    place.set(b="hold", c="hold")
    outcomes = local(FUNCTION, tasks(place, "a b c"), jobs=2)
    assert next(outcomes)[0].key == "a"
    pids = []

    def leave() -> None:
        pids.extend([place.inside()[0], place.inside()[0]])
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=leave, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    assert len(pids) == 2
    assert all(place.ended(pid) for pid in pids)


def test_no_worker_outlives_a_parent_that_was_killed(place: Place) -> None:
    place.set(a="hold", b="hold")
    code = f"""if True:
        from asyncsim.executors import Task
        from asyncsim.executors.local import local
        tasks = [Task(name, name, {{"name": name, "folder": {str(place.folder)!r}}}) for name in "ab"]
        list(local({FUNCTION!r}, tasks, jobs=2))"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
        held = [place.inside(), place.inside()]
        assert {above for _, above in held} == {parent.pid}
        parent.kill()
    assert all(place.ended(pid) for pid, _ in held)


def test_workers_use_one_thread_and_no_input(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import os, sys
def make():
    def look(data):
        import numpy, threadpoolctl
        threads = [library["num_threads"] for library in threadpoolctl.threadpool_info()]
        print("for the log", flush=True)
        open(data["file"], "w").write(repr((set(threads), sys.stdin.read())))
    return look
"""
    (place.folder / "looking.py").write_text(code)
    monkeypatch.syspath_prepend(str(place.folder))
    file = place.folder / "seen"
    assert [failure for _, failure in local("looking:make", [Task("a", "", {"file": str(file)})], jobs=1)] == [None]
    assert file.read_text() == "({1}, '')"


def test_a_function_is_found_by_name() -> None:
    assert callable(function_named(FUNCTION))

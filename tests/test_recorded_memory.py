"""What a method's server keeps in shared memory: large arrays stay where they are until they change."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from asyncsim.sources.recorded.memory import LARGE, MOST_LARGE, Layout, Memory

SIZE = LARGE // 8 + 3

#: What is kept beside versions 0, 1, …: each is made of the one before, as `apply` makes it.
STEPS: dict[str, Callable[[Any], Any]] = {
    "unchanged": lambda kept: (kept[0], kept[1], kept[2] + 1),
    "one changes": lambda kept: (kept[0], kept[1] + 1.0, kept[2] + 1),
    "both change": lambda kept: (kept[0] * 2.0, kept[1] + 1.0, kept[2] + 1),
    "they trade places": lambda kept: (kept[1], kept[0], kept[2]),
    "one is the other": lambda kept: (kept[1], kept[1], kept[2]),
    "one becomes small": lambda kept: (kept[0][:2], kept[1], kept[2]),
    "one becomes None": lambda kept: (None, kept[1], kept[2]),
    "one grows": lambda kept: (np.append(kept[0], 1.0), kept[1], kept[2]),
    "columns first": lambda kept: (np.asfortranarray(np.ones((200, SIZE // 150))), kept[1], kept[2]),
    "not contiguous": lambda kept: (kept[0][::2], kept[1], kept[2]),
}


def memory_with(what: Any) -> Memory:
    memory = Memory(Layout(size=4, workers=1, blocks=0, extra=1 << 20, rows=8, places=2))
    memory.keep(0, what)
    return memory


def first() -> tuple[Any, ...]:
    return np.arange(SIZE, dtype=float), -np.arange(SIZE + 7, dtype=float), np.arange(3)


def same(one: Any, other: Any) -> bool:
    return all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("then", STEPS)
@pytest.mark.parametrize("step", STEPS)
def test_what_is_kept_is_what_was_given_and_the_version_before_stays(step: str, then: str) -> None:
    """A worker that is killed once the next version is kept, and before it is current, has changed nothing."""
    expected = first()
    memory = memory_with(expected)
    try:
        for version, name in enumerate((step, "unchanged", "one changes", step)):
            if expected[0] is None or expected[0].ndim == 2:
                break
            after = STEPS[name](expected)
            memory.keep(version + 1, STEPS[then](memory.kept(version)))  # of one who was killed
            memory.keep(version + 1, STEPS[name](memory.kept(version)))
            assert same(memory.kept(version), expected)
            assert same(memory.kept(version + 1), after)
            expected = after
    finally:
        memory.close()


def test_an_array_that_stays_is_not_written_again_and_one_that_changes_is() -> None:
    memory = memory_with(first())
    kept = memory.kept(0)
    memory.keep(1, (kept[0], kept[1] + 1.0, kept[2]))
    after = memory.kept(1)
    assert np.shares_memory(after[0], kept[0])
    assert not np.shares_memory(after[1], kept[1])
    assert not after[0].flags.writeable


def test_more_large_arrays_than_have_places() -> None:
    arrays = [np.full(SIZE, float(number)) for number in range(MOST_LARGE + 2)]
    memory = Memory(Layout(size=4, workers=1, blocks=0, extra=2 * MOST_LARGE * SIZE * 8, rows=8, places=2))
    memory.keep(0, arrays)
    memory.keep(1, memory.kept(0))
    assert same(memory.kept(1), arrays)
    memory.close()


def test_what_outgrows_its_room_is_refused() -> None:
    memory = memory_with(first())
    with pytest.raises(RuntimeError, match="has grown to"):
        memory.keep(1, np.ones(1 << 18))
    memory.close()


def test_the_benchmark_of_recording_writes_rows_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the place of a server and of a worker, so it must change with them."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    benchmark = importlib.import_module("benchmarks.recording")
    made: list[Memory] = []

    def noted(layout: Layout) -> Memory:
        made.append(Memory(layout))
        return made[-1]

    monkeypatch.setattr(benchmark, "UPDATES", 3)
    monkeypatch.setattr(benchmark, "Memory", noted)
    benchmark.row_of_server()()
    benchmark.row_in_shared_memory()()
    assert made[0].log["draw"][:3].tolist() == [0, 1, 2]
    assert made[0].version == 3
    made[0].close()

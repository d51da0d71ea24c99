"""The memory that worker processes share: the model, its version, the rows written so far, and locks.

It is a file without a name, handed down to the workers as a descriptor, so nothing is left behind however the run ends.
Locks are those of the kernel on bytes of that file: a process that is killed loses its locks with it, which a semaphore
does not do.

Everything is arranged so that a worker may be killed at any instruction. A row is written behind the last one, and only
then is the number of rows raised: that one store is the update. The model has two places, of which the last row's
version says the current one. Where readers may see blocks of different versions there is one place, and the new model
is first written beside it in full: whoever comes next finishes what a dead writer has begun. Whether the run is over is
told from the rows, so that it does not matter either who is killed between the last update and saying so.

What this asks of the machine: a store of eight aligned bytes is whole, and what one process has written before it gives
a lock back is seen by the next that takes it. (The kernel sees to that: its own locks order memory.) Without a lock are
read only the counters, by those who look again later, and the service times that lie ready. Of these a processor that
reorders stores, such as ARM's, could show the count before the time itself, where a worker waits for the very next one;
they lie ready thousands ahead.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncsim.blocks import block_bounds
from asyncsim.sources.recorded.processes import nameless_file

#: Room for rows, and for the versions of their blocks; pages that are never touched cost nothing.
MOST_ROWS, MOST_BLOCK_VERSIONS = 1 << 24, 1 << 33
#: Durations that lie ready for each worker.
AHEAD = 4096
#: Bytes for what a method's server keeps beside the model, more than it needs at the beginning.
SPARE = 1 << 16
#: Arrays among that of as many bytes have places of their own, the first so many of them.
LARGE, MOST_LARGE = 1 << 15, 32

#: One row: ten columns, the version that it left behind (the one it found, where an update has diverged or there was
#: none), the checksum of that version, and why the run is over with it.
ROW = np.dtype(
    [
        ("worker", "i8"),
        ("draw", "i8"),
        ("read_version", "i8"),
        ("update", "i8"),
        ("status", "i8"),
        ("read_time", "f8"),
        ("start_time", "f8"),
        ("done_time", "f8"),
        ("arrive_time", "f8"),
        ("apply_time", "f8"),
        ("version", "i8"),
        ("checksum", "u8"),
        ("over", "i8"),
    ]
)
#: What a worker is doing: the draw that it computes or is about to, and what it read for it.
DOING = np.dtype([("draw", "i8"), ("reading", "i8"), ("read_version", "i8"), ("read_time", "f8"), ("supplied", "i8")])
#: Where one of a version's large arrays lies: in which of its two places, and how many bytes; none if 0.
PLACE = np.dtype([("which", "i8"), ("bytes", "i8")])

# Places in the vector of counters.
ROWS, OVER, UNFINISHED, COUNTERS = range(4)
# Why the run is over.
RUNNING, DONE, DIVERGED, FULL = range(4)

#: The byte that stands for the right to update; those after it stand for the blocks.
UPDATE = 0


@dataclass(frozen=True)
class Layout:
    """Sizes: numbers of a version, workers, blocks (0: reads are whole), bytes of what the server keeps, room for rows.

    `places` is how many places versions of the model take turns in.
    """

    size: int
    workers: int
    blocks: int
    extra: int
    rows: int
    places: int

    def fields(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Return the type and shape of each array, in order."""
        return {
            "counter": (np.dtype("i8"), (COUNTERS,)),
            "doing": (DOING, (self.workers,)),
            "durations": (np.dtype("f8"), (self.workers, AHEAD)),
            "block_version": (np.dtype("i8"), (self.blocks,)),
            "models": (np.dtype("f8"), (2, self.size)),
            "extra_size": (np.dtype("i8"), (2,)),
            "extra": (np.dtype("u1"), (2, self.extra)),
            "large": (np.dtype("u1"), (2, self.extra)),
            "large_start": (np.dtype("i8"), (MOST_LARGE,)),
            "large_room": (np.dtype("i8"), (MOST_LARGE,)),
            "large_place": (PLACE, (2, MOST_LARGE)),
            "log": (ROW, (self.rows,)),
            "reads": (np.dtype("i8"), (self.rows, self.blocks)),
        }

    @property
    def bounds(self) -> list[slice]:
        """The numbers of a version in each block."""
        return block_bounds(self.size, self.blocks) if self.blocks else []


class Memory:
    """The arrays of a `Layout` on a shared file, and its locks."""

    counter: np.ndarray
    doing: np.ndarray
    durations: np.ndarray
    block_version: np.ndarray
    models: np.ndarray
    extra_size: np.ndarray
    extra: np.ndarray
    large: np.ndarray
    large_start: np.ndarray
    large_room: np.ndarray
    large_place: np.ndarray
    log: np.ndarray
    reads: np.ndarray

    def __init__(self, layout: Layout, file: int | None = None):
        """Attach to the file of that descriptor, or make one."""
        self.layout, self.file = layout, nameless_file() if file is None else file
        self.bounds = layout.bounds
        places, size = {}, 0
        for name, (kind, shape) in layout.fields().items():
            places[name] = size
            size += -(-kind.itemsize * int(np.prod(shape)) // 64) * 64
        if file is None:
            os.ftruncate(self.file, size)
        self.map = mmap.mmap(self.file, size)
        for name, (kind, shape) in layout.fields().items():
            setattr(self, name, np.ndarray(shape, dtype=kind, buffer=self.map, offset=places[name]))

    def close(self) -> None:
        """Let go of the file; its memory is free again when the last process has."""
        for name in self.layout.fields():
            delattr(self, name)
        with contextlib.suppress(BufferError):  # somebody still looks at an array; the map goes with it
            self.map.close()
        os.close(self.file)

    @contextmanager
    def lock(self, byte: int = UPDATE) -> Iterator[None]:
        """Hold a lock; the kernel takes it back from a process that ends."""
        fcntl.lockf(self.file, fcntl.LOCK_EX, 1, byte)
        try:
            yield
        finally:
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, byte)

    @property
    def version(self) -> int:
        """The current version."""
        rows = int(self.counter[ROWS])
        return int(self.log[rows - 1]["version"]) if rows else 0

    def model(self, version: int) -> np.ndarray:
        """Return where a version lies, or will lie."""
        return np.asarray(self.models[version % self.layout.places])

    def why_over(self, last_update: float) -> int:
        """Return why the rows end the run, which has no more than `last_update` updates; `RUNNING` if they do not."""
        rows = int(self.counter[ROWS])
        last = self.log[rows - 1]
        if rows and last["over"] != RUNNING:
            return int(last["over"])
        if rows and last["version"] >= last_update:
            return DONE
        return FULL if rows == self.layout.rows else RUNNING

    def finish(self) -> None:
        """Write a model that lies ready to its place, block by block: our own, or that of a writer that was killed.

        The right to update must be ours.
        """
        rows = int(self.counter[ROWS])
        if self.counter[UNFINISHED] != rows + 1:
            return
        version = int(self.log[rows]["version"])
        for block, bounds in enumerate(self.bounds):
            with self.lock(UPDATE + 1 + block):
                self.block_version[block] = -version
                self.models[0, bounds] = self.models[1, bounds]
                self.block_version[block] = version
                if block == len(self.bounds) - 1:
                    self.log[rows]["apply_time"] = time.monotonic()
                    self.counter[ROWS] = rows + 1

    def kept(self, version: int) -> Any:
        """Return what the server keeps beside a version; its large arrays are shared memory, and not to be written."""
        size = int(self.extra_size[version % 2])
        places = enumerate(self.large_place[version % 2].tolist())
        arrays = [self._large(number, *place).toreadonly() for number, place in places if place[1]]
        return pickle.loads(self.extra[version % 2, :size].data, buffers=arrays) if size else None

    def keep(self, version: int, what: Any) -> None:
        """Write what the server keeps beside a version, not yet current.

        Each large array of version 0 has two places. One that is still the current version's stays where it is; another
        goes to the place that the current version does not use. What finds no room there goes with the small ones.
        """
        current, places = self.large_place[(version - 1) % 2]["which"].tolist(), self.large_place[version % 2]
        places["bytes"] = 0
        number = 0

        def put(buffer: pickle.PickleBuffer) -> bool:
            """Say whether the array goes with the small ones; otherwise see that it is in a place of its own."""
            nonlocal number
            data = buffer.raw()
            if data.nbytes < LARGE or number == MOST_LARGE:
                return True
            if version == 0:
                self.large_start[number] = self.large_room[:number].sum()
                self.large_room[number] = -(-data.nbytes // 64) * 64
            if data.nbytes > self.large_room[number]:
                return True
            which = current[number]
            if _address(data) != _address(self._large(number, which, data.nbytes)):
                which = 1 - which
                self._large(number, which, data.nbytes)[:] = data
            places[number] = which, data.nbytes
            number += 1
            return False

        data = b"" if what is None else pickle.dumps(what, protocol=5, buffer_callback=put)
        if len(data) > self.layout.extra:
            raise RuntimeError(
                f"what the method keeps has grown to {len(data):,} bytes, from {self.layout.extra - SPARE:,}"
            )
        self.extra[version % 2, : len(data)] = np.frombuffer(data, dtype=np.uint8)
        self.extra_size[version % 2] = len(data)

    def _large(self, number: int, which: int, size: int) -> memoryview:
        """Return the first bytes of a large array's place."""
        start = int(self.large_start[number])
        return self.large[which, start : start + size].data


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, dtype=np.uint8).ctypes.data)

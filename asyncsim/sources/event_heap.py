"""The heap of the compiled event loop: events in order of time, kind, worker and draw, each with four below it."""

from __future__ import annotations

from asyncsim.sources.loop_state import HEAP, KIND_BIT, MASK, TOP_EMPTY, WORKER_BIT, inlined


@inlined
def _tie(key, other, gradients):  # type: ignore[no-untyped-def]
    """Say whether the event of `key` comes before an `other` of the same time: by kind and worker, then draw."""
    if key >> WORKER_BIT != other >> WORKER_BIT:
        return key < other
    return gradients[key & MASK].draw < gradients[other & MASK].draw


@inlined
def _sift_down(counter, heap, gradients, time, key):  # type: ignore[no-untyped-def]
    """Put an event at the top of the heap, where each has four below it, and sink it to its place."""
    size = counter[HEAP]
    place = 0
    while True:
        child = 4 * place + 1
        if child >= size:
            break
        first, earliest = child, heap[child].time
        for other in range(child + 1, min(child + 4, size)):
            candidate = heap[other].time
            if candidate == earliest:
                if _tie(heap[other].key, heap[first].key, gradients):
                    first = other
            else:  # without a branch, which would be guessed wrong every other time
                first = other if candidate < earliest else first
                earliest = min(earliest, candidate)
        if earliest > time or (earliest == time and not _tie(heap[first].key, key, gradients)):
            break
        heap[place].time, heap[place].key = earliest, heap[first].key
        place = first
    heap[place].time, heap[place].key = time, key


@inlined
def push(counter, heap, gradients, time, kind, worker, slot):  # type: ignore[no-untyped-def]
    """Schedule an event; it takes the place of the one that was taken last, if that is still empty."""
    key = (kind << KIND_BIT) | (worker << WORKER_BIT) | slot
    if counter[TOP_EMPTY]:
        counter[TOP_EMPTY] = 0
        _sift_down(counter, heap, gradients, time, key)
        return
    place = counter[HEAP]
    counter[HEAP] += 1
    while place > 0:
        parent = (place - 1) >> 2
        before = heap[parent].time
        if before < time or (before == time and _tie(heap[parent].key, key, gradients)):
            break
        heap[place].time, heap[place].key = before, heap[parent].key
        place = parent
    heap[place].time, heap[place].key = time, key


@inlined
def fill_top(counter, heap, gradients):  # type: ignore[no-untyped-def]
    """Close the gap that the event taken last has left."""
    counter[TOP_EMPTY] = 0
    counter[HEAP] -= 1
    last = counter[HEAP]
    if last > 0:
        _sift_down(counter, heap, gradients, heap[last].time, heap[last].key)

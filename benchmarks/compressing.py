"""What it costs to compress a vector: `python benchmarks/compressing.py`, two minutes; rewrites compressing.md.

The unit is one pass over the vector, numpy's `x.sum()`, which reads every number once. What would be done with numpy
alone is timed beside it, in turns: `argpartition` for the largest, a permutation for random coordinates.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
from table import Line, markdown, text  # noqa: E402
from timing import commit, in_new_process, machine, take_turns  # noqa: E402

from asyncsim.compressors import (  # noqa: E402
    QSGD,
    Composed,
    Compressor,
    Identity,
    RandK,
    ScaledSign,
    SketchedTopK,
    TopK,
)

D = 10_000_000
FRACTIONS = (0.001, 0.01, 0.1)
ROUNDS = 9
ADDRESS = (7, 0, 3, 17)

REPORT = """# Compressing a vector

Made by `python benchmarks/compressing.py` at commit {commit} on {machine}.

Processor time of one process in which the candidates take turns, medians of {rounds}. The vector has ten million normal
numbers unless it says otherwise. A pass is numpy's `x.sum()`: {passing:.1f} ms. `np.abs(x).sum()`, which writes the
sizes down and reads them again, takes {sizes:.1f} ms. To encode is to go from the vector to the bytes; to decode, from
the bytes to a new vector of ten million numbers.

{table}

## Every compressor

Milliseconds at ten million coordinates, microseconds at a hundred (mostly calls of numpy); fraction 0.01, of the
sketch 0.001, with 5 rows of 4k columns; 10 of 100.

| compressor | bytes, d = 10⁷ | encode, ms | decode, ms | encode, µs, d = 100 | decode, µs |
|---|---:|---:|---:|---:|---:|
{every}
"""


def both_ways(compressor: Compressor, x: np.ndarray, often: int = 1) -> dict[str, Callable[[], Any]]:
    """Return what encodes x and what decodes it."""
    payload = compressor.encode(x, ADDRESS)

    def encode() -> None:
        for _ in range(often):
            compressor.encode(x, ADDRESS)

    def decode() -> None:
        for _ in range(often):
            compressor.decode(payload)

    return {"encode": encode, "decode": decode}


def against_a_pass(x: np.ndarray) -> Iterator[Line]:
    """TopK and RandK of the fractions, and numpy's ways to them."""
    rng = np.random.default_rng(1)
    for fraction in FRACTIONS:
        k = int(fraction * D)
        candidates: dict[str, Callable[[], Any]] = {"pass": x.sum}
        for compressor in (TopK(fraction=fraction), RandK(fraction=fraction)):
            for way, run in both_ways(compressor, x).items():
                candidates[f"{type(compressor).__name__}, {way}"] = run
        candidates["numpy: argpartition of the sizes"] = lambda k=k: np.argpartition(np.abs(x), D - k)[D - k :]
        if fraction == FRACTIONS[-1]:
            candidates["numpy: the first k of a permutation"] = lambda k=k: rng.permutation(D)[:k]
            candidates["numpy: choice without replacement"] = lambda k=k: rng.choice(D, k, replace=False)
        seconds = take_turns(candidates, ROUNDS)
        for name, value in list(seconds.items())[1:]:
            target = None if name.startswith("numpy") else 3.0
            shown = f"{1e3 * value:.1f} ms against {1e3 * seconds['pass']:.1f}"
            yield Line(f"{name}, {fraction:g} of d = 10⁷", value / seconds["pass"], "passes", shown, at_most=target)


def unkind_vectors(x: np.ndarray) -> Iterator[Line]:
    """TopK where the sizes are not like a sample of a smooth law."""
    sparse = np.where(np.arange(D) % 1000 == 0, x, 0.0)
    vectors = {
        "all of one size": np.sign(x),
        "rounded to whole numbers": np.rint(x),
        "one in a thousand nonzero": sparse,
        "sorted": np.sort(x),
    }
    for name, vector in vectors.items():
        seconds = take_turns({"pass": vector.sum, "encode": both_ways(TopK(fraction=0.01), vector)["encode"]}, ROUNDS)
        shown = f"{1e3 * seconds['encode']:.1f} ms"
        yield Line(f"TopK, encode, 0.01, {name}", seconds["encode"] / seconds["pass"], "passes", shown, at_most=3.0)


FIRST = """
import time
from asyncsim.compressors import *
import numba
begin = time.process_time()
{}.encode([1.0, 2.0, 3.0], (7, 0, 0, 0))
print(time.process_time() - begin)
"""


def first_calls() -> Iterator[Line]:
    """The first call of a process, with nothing compiled yet and with everything compiled, numba's import left out."""
    for call in ("RandK(k=1)", "SketchedTopK(k=1)", "QSGD(levels=1)"):
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (float(in_new_process(FIRST.format(call), NUMBA_CACHE_DIR=cache).stdout) for _ in range(2))
        yield Line(f"first {call.split('(')[0]} of a process, cold cache", cold, "s", f"warm: {warm:.2f} s")


def every(x: np.ndarray) -> Iterator[str]:
    """Return a row for each compressor."""

    def of(k: float) -> dict[str, Compressor]:
        part = {"fraction": 0.01} if k == 0.01 else {"k": int(k)}
        sketched = {"fraction": 0.001} if k == 0.01 else {"k": int(k)}
        return {
            "Identity": Identity(),
            "RandK": RandK(**part),
            "TopK": TopK(**part),
            "SketchedTopK": SketchedTopK(**sketched),
            "ScaledSign": ScaledSign(),
            "QSGD, 4 levels": QSGD(levels=4),
            "TopK, then ScaledSign": Composed(sparsifier=TopK(**part), quantizer=ScaledSign()),
            "RandK, then QSGD": Composed(sparsifier=RandK(**part), quantizer=QSGD(levels=4)),
        }

    for name, compressor in of(0.01).items():
        long = take_turns(both_ways(compressor, x), 5)
        short = take_turns(both_ways(of(10)[name], x[:100].copy(), 1000), 5)
        figures = [f"{1e3 * value:.1f}" for value in (*long.values(), *short.values())]
        yield f"| {name} | {compressor.nbytes(D):,} | {' | '.join(figures)} |"


def main() -> None:
    """Measure, print, and write compressing.md."""
    x = np.random.default_rng(0).standard_normal(D)
    lines = []
    for part in (against_a_pass(x), unkind_vectors(x), first_calls()):
        for line in part:
            print(text(line), flush=True)
            lines.append(line)
    rows = list(every(x))
    print("\n".join(rows))
    passes = take_turns({"pass": x.sum, "sizes": lambda: np.abs(x).sum()}, ROUNDS)
    report = REPORT.format(
        commit=commit(),
        machine=machine(),
        rounds=ROUNDS,
        passing=1e3 * passes["pass"],
        sizes=1e3 * passes["sizes"],
        table=markdown(lines),
        every="\n".join(rows),
    )
    (HERE / "compressing.md").write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()

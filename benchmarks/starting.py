"""How long the first simulation takes: nothing compiled yet, compiled by an earlier process, installed read-only."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from table import Line
from timing import ROOT, in_new_process

FIRST_CALL = """
import time
begin = time.process_time()
import asyncsim
from asyncsim.scenario import build
scenario = build({
    "cluster": {
        "workers": [{"count": 4, "service": {"law": "exponential", "mean": 1.0}}],
        "network": {"topology": "star", "latency": {"law": "exponential", "mean": 0.1}},
        "server": {"service": {"law": "exponential", "mean": 0.1}},
    },
    "run": {"updates": 5000},
})
imported = time.process_time()
asyncsim.simulate(scenario, engine="compiled")
print(imported - begin, time.process_time() - imported)
"""


def first_call(quick: bool) -> Iterator[Line]:
    """The first call of `asyncsim.simulate` in a process."""
    rounds = 1 if quick else 3
    cold, warm = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(_seconds(cache))
            warm.append(_seconds(cache))
    for name, times, limit in (("cold", cold, 10.0), ("warm", warm, 1.0)):
        shown = f"importing before it: {median(imported for imported, _ in times):.2f} s"
        yield Line(f"first simulation, {name} cache", median(call for _, call in times), "s", shown, at_most=limit)


def _seconds(cache: str) -> tuple[float, float]:
    done = in_new_process(FIRST_CALL, NUMBA_CACHE_DIR=cache)
    if done.returncode:
        raise RuntimeError(done.stderr)
    imported, call = map(float, done.stdout.split())
    return imported, call


def read_only_install() -> Iterator[str]:
    """Say what happens, twice in a row, where the package cannot be written to: one line for each environment."""
    with tempfile.TemporaryDirectory() as folder:
        install, home, temporary = (Path(folder, name) for name in ("install", "home", "temporary"))
        shutil.copytree(ROOT / "asyncsim", install / "asyncsim", ignore=shutil.ignore_patterns("__pycache__"))
        home.mkdir()
        temporary.mkdir()
        # Nothing is read-only for root, unless it gives up the right to overrule permissions.
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
        before = ("setpriv", "--bounding-set", "-dac_override") if is_root else ()
        for path in (install, *install.rglob("*")):
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        nowhere = str(install / "home")  # it cannot be made
        environments = {
            "a home of its own": {"HOME": str(home)},
            "no home, NUMBA_CACHE_DIR set": {"HOME": nowhere, "NUMBA_CACHE_DIR": str(home / "numba")},
            "neither": {"HOME": nowhere, "TMPDIR": str(temporary)},
        }
        for name, environment in environments.items():
            first, second = (_said(in_new_process(FIRST_CALL, install, before, **environment)) for _ in range(2))
            yield f"{name}: {first}" + ("" if first == second else f", then {second}")
        for path in (install, *install.rglob("*")):  # so that the folder can be removed
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """Return the time of the first simulation, or the error."""
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1].split(" for file")[0]
    return f"{float(done.stdout.split()[1]):.2f} s"

"""Timing things against each other on a machine that does other work too.

Times are processor time of this process (`time.process_time`), so waiting for other programs does not count. What they
do to caches and clocks does; therefore the candidates take turns, round after round, and ratios are of medians.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "numba", "simpy", "pyarrow", "scipy")


def take_turns(candidates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median processor time of each candidate, in seconds, after one run that does not count."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            gc.collect()  # nobody pays for what another has left behind
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_new_process(
    code: str, root: Path = ROOT, before: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code that imports asyncsim from `root`, in a process with this and almost no other environment.

    `before` is a command that runs the command given to it, such as `nice`.
    """
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(root)} | environment
    return subprocess.run(
        [*before, sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True, check=False
    )


def machine() -> str:
    """Say in one line what this runs on."""
    name = platform.processor() or "unknown processor"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"{os.cpu_count()} cores of {name}; {platform.system()}; Python {platform.python_version()}, {packages}"


def commit() -> str:
    """Return the commit, and whether the package differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "asyncsim/sources", "asyncsim/replay.py", "asyncsim/trace.py")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (" with changes" if changed else "")

"""Memory that numpy frees stays with the processes that belong to asyncsim."""

import ctypes
import subprocess
import sys

import pytest

import asyncsim
from tests import real_problems
from tests.test_recorded import own

#: Prints how many pages twenty gradients with three arrays each take from the kernel.
FETCHED = """
import resource
import numpy as np

def compute():
    arrays = [np.ones(60_000) for _ in range(3)]

compute()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    compute()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from asyncsim.allocator import keep_freed_memory; keep_freed_memory()"

needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="needs glibc")


def pages_fetched(start: str) -> int:
    done = subprocess.run([sys.executable, "-c", start + FETCHED], capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs_glibc
def test_arrays_that_come_and_go_are_not_fetched_from_the_kernel() -> None:
    assert pages_fetched(KEEP) < 500
    assert pages_fetched("") > 2000  # 20 times three arrays of 118 pages, and more than the half of them


@needs_glibc
@pytest.mark.parametrize("backend", ["queue", "manager", "shared_memory", "mpi"])
def test_workers_keep_what_they_free(backend: str) -> None:
    """Each gradient adds to the model how many pages it has fetched."""
    recorded = own(real_problems.Fetching(), workers=1, backend=backend, updates=50, method={"step": 1.0})
    recording = asyncsim.record(recorded)
    assert recording.ended is None
    if_given_back = 50 * real_problems.Fetching.ARRAYS * 8 * real_problems.Fetching.LENGTH / 4096
    assert 0.0 <= recording.final_iterate.max() < 0.1 * if_given_back

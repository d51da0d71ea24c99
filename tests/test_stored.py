"""Traces too long to be held: written, checked, measured and replayed part by part, with the same result."""

from __future__ import annotations

import pytest
from generate import scenarios
from hypothesis import HealthCheck, given, settings
from same import assert_same_trace

from asyncsim import stored
from asyncsim.results import read_trace
from asyncsim.sources import simulate, simulate_to_file

#: Rows of a row group, and of what the engine holds before it gives rows away.
FEW = 16


@pytest.fixture
def small(monkeypatch):
    """Row groups of few rows, and every trace too long to be held."""
    monkeypatch.setattr(stored, "ROW_GROUP", FEW)
    monkeypatch.setattr(stored, "LONGEST_IN_MEMORY", 0)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(scenario=scenarios())
def test_a_trace_written_as_it_is_made_is_the_same(scenario, small, tmp_path):
    whole = simulate(scenario, engine="compiled")
    in_parts = simulate_to_file(scenario, tmp_path / "trace.parquet", engine="compiled")
    assert_same_trace(read_trace(tmp_path / "trace.parquet"), whole)
    assert in_parts.sha256() == whole.sha256()

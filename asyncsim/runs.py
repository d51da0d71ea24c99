"""What a replay gives: a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from asyncsim.trace import Trace


@dataclass(frozen=True)
class Divergence:
    """A replica whose model stopped being a number that can be squared, and the update that did it."""

    replica: int
    update: int

    def __str__(self) -> str:
        """Say it in a sentence."""
        return f"replica {self.replica} diverged at update {self.update}: the model is no longer finite"


@dataclass(frozen=True)
class Run:
    """What a replay gave.

    Attributes
    ----------
    trace
        The schedule that was replayed.
    final_iterates
        The last version of each replica, shape (replicas, d).
    iterates
        Every version, shape (replicas, updates + 1, d), if they were asked for; a replica that ended earlier is padded
        with its last version.
    metrics
        Tidy DataFrame: replica, update, time, metric, value.
    checksums
        For each replica a checksum of every version, shape (updates + 1,), if they were asked for; of a recorded run,
        those of the real versions.
    diverged
        The replicas that diverged; they end with their last finite version.
    facts
        What the method says about the run as a whole, such as how often it perturbed: by name, one entry per replica.
    summary, scenario
        Numbers about the run as a whole beside what theory says, and the resolved scenario as plain data; both only
        from `asyncsim.run` and `asyncsim.open_run`.
    """

    trace: Trace
    final_iterates: np.ndarray = field(repr=False)
    iterates: np.ndarray | None = field(default=None, repr=False)
    measurements: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    metric_names: tuple[str, ...] = ()
    diverged: tuple[Divergence, ...] = ()
    squared_distances: np.ndarray | None = field(default=None, repr=False)
    checksums: tuple[np.ndarray, ...] = field(default=(), repr=False)
    facts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    summary: dict[str, Any] = field(default_factory=dict, repr=False)
    scenario: dict[str, Any] | None = field(default=None, repr=False)

    @cached_property
    def metrics(self) -> Any:
        """The measurements as a tidy pandas DataFrame."""
        import pandas as pd

        frame = pd.DataFrame(self.measurements)
        codes = np.asarray(self.measurements["metric"], dtype=np.int64)
        frame["metric"] = pd.Categorical.from_codes(codes, categories=pd.Index(self.metric_names))
        return frame.astype({"replica": "int32", "update": "int64", "time": "float64", "value": "float64"})

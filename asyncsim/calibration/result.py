"""What a calibration gives: the cluster, how it was fitted, and what it assumes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncsim.calibration.assumptions import Assumption
from asyncsim.cluster import Cluster
from asyncsim.durations import Empirical


@dataclass(frozen=True)
class Part:
    """One fitted law of a calibration and what it was fitted to.

    `distance` is that of Kolmogorov and Smirnov between law and durations; where only staleness is known, the total
    variation between simulated and measured staleness. `noise` is what chance alone gives.
    """

    name: str
    workers: tuple[int, ...]
    law: Any
    count: int
    mean: float
    distance: float
    noise: float


@dataclass(frozen=True)
class Calibration:
    """A cluster fitted to a trace.

    Attributes
    ----------
    cluster
        The `Cluster`, for a scenario of your own.
    parts
        The fitted laws: one per group of workers, and those of the server and the network where they take time.
    assumptions
        What the model assumes, and whether the trace bears it out.
    notes
        What was left out of the model, or assumed in making it.
    order
        The trace's number of each of the cluster's workers. A scenario numbers its groups one after the other, so
        workers are renumbered where the trace's groups interleave; a worker's number is only a name.
    source
        What was calibrated, in a word.
    """

    cluster: Cluster
    parts: tuple[Part, ...]
    assumptions: tuple[Assumption, ...]
    notes: tuple[str, ...]
    source: str
    about: str = ""
    order: tuple[int, ...] = field(default=(), repr=False)

    @property
    def warnings(self) -> list[str]:
        """What the trace does not bear out and the cluster assumes all the same."""
        return [said for said in (assumption.warning for assumption in self.assumptions) if said]

    @property
    def fits(self) -> Any:
        """The fitted laws as a DataFrame: part, workers, law, its parameters, count, mean, distance, noise."""
        import pandas as pd

        from asyncsim.calibration.document import inline

        rows = [
            {
                "part": part.name,
                "workers": ", ".join(map(str, part.workers)),
                "law": part.law.law,
                "parameters": "" if isinstance(part.law, Empirical) else inline(part.law),
                "count": part.count,
                "mean": part.mean,
                "distance": part.distance,
                "noise": part.noise,
            }
            for part in self.parts
        ]
        return pd.DataFrame(rows)

    @property
    def checks(self) -> Any:
        """The assumptions as a DataFrame: assumption, verdict, figure."""
        import pandas as pd

        rows = [{"assumption": a.name, "verdict": a.verdict, "figure": a.figure} for a in self.assumptions]
        return pd.DataFrame(rows)

    def toml(self, *, name: str = "cluster") -> str:
        """Return the text of a scenario file's [cluster]; measured durations are looked for in files `name`.….csv."""
        from asyncsim.calibration.document import cluster_text

        return cluster_text(self, name)[0]

    def write(self, path: str | Path) -> list[Path]:
        """Write the cluster to a TOML file, and the durations of empirical laws beside it; return what was written."""
        from asyncsim.calibration.document import write

        return write(self, Path(path))

    def lines(self) -> list[str]:
        """Return the report for the terminal."""
        from asyncsim.calibration.document import report_lines

        return report_lines(self)

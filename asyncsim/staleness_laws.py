"""Laws of staleness for synthetic traces: how many updates ago the gradient of an update was read."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncsim.spec import File, Floats, Spec, named_field, refuse

#: A number of updates; more than any run has.
LONGEST = 2**48
Delay = Annotated[int, Field(ge=0, le=LONGEST)]


class StalenessLaw(Spec):
    """A law of whole, non-negative numbers, with its `mean`.

    The trace cuts it at the update's index: nobody reads before version 0.
    """

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Return the smallest staleness whose cumulative probability exceeds `probability` (an array in (0, 1))."""
        raise NotImplementedError

    def sequence(self, probability: np.ndarray) -> np.ndarray:
        """Return the staleness of updates 0, 1, …, given one uniform number for each; shape as given."""
        return self.quantile(probability)


class Geometric(StalenessLaw):
    """P(τ = l) = (1 − μ) μ^l with mean μ / (1 − μ): that of exponential workers, mean M − 1."""

    law: Literal["geometric"] = "geometric"
    mean: Annotated[float, Field(ge=0, le=LONGEST)]

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Return ⌊log(1 − p) / log μ⌋."""
        if self.mean == 0:
            return np.zeros(probability.shape, dtype=np.int64)
        momentum = self.mean / (1.0 + self.mean)
        return np.floor(np.log1p(-probability) / np.log(momentum)).astype(np.int64)


class Constant(StalenessLaw):
    """Always `value`: delayed SGD."""

    law: Literal["constant"] = "constant"
    value: Delay

    @property
    def mean(self) -> float:
        """The value."""
        return float(self.value)

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Return the value."""
        return np.full(probability.shape, self.value, dtype=np.int64)


class Uniform(StalenessLaw):
    """Equally likely `low`, …, `high`, both included."""

    law: Literal["uniform"] = "uniform"
    low: Delay = 0
    high: Delay

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.high < self.low:
            raise refuse(f"high must be at least low = {self.low}, got {self.high}")
        return self

    @property
    def mean(self) -> float:
        """Half of low + high."""
        return 0.5 * (self.low + self.high)

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Return low + ⌊(high − low + 1) p⌋."""
        return self.low + (probability * (self.high - self.low + 1)).astype(np.int64)


class ProbabilityVector(StalenessLaw):
    """Any law with finitely many values: `probabilities` of staleness 0, 1, 2, …"""

    law: Literal["pmf"] = "pmf"
    probabilities: Floats

    @model_validator(mode="after")
    def _is_law(self) -> ProbabilityVector:
        if not self.probabilities or min(self.probabilities) < 0 or abs(sum(self.probabilities) - 1) > 1e-6:
            said = f"they sum to {sum(self.probabilities):g}, the least is {min(self.probabilities, default=0.0):g}"
            raise refuse(f"probabilities must be non-negative and sum to 1; {said}")
        return self

    @property
    def mean(self) -> float:
        """Σ l q_l."""
        return float(np.arange(len(self.probabilities)) @ np.array(self.probabilities))

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Invert the cumulative sums."""
        cumulative = np.cumsum(self.probabilities)
        return np.minimum(np.searchsorted(cumulative, probability, side="right"), cumulative.size - 1)


class Empirical(StalenessLaw):
    """Measured staleness: `column` of a csv or parquet `file`, in its `order` or drawn with equal chance.

    With ``order = "kept"`` update t has the t-th measured value (over again after the last), which keeps what
    neighbouring updates have to do with each other; every replica is then the same.
    """

    law: Literal["empirical"] = "empirical"
    file: File
    column: str | int | None = None
    order: Literal["drawn", "kept"] = "drawn"

    @model_validator(mode="after")
    def _is_staleness(self) -> Empirical:
        bad = ~((self._read >= 0) & (self._read <= LONGEST) & (self._read == np.floor(self._read)))
        if bad.any():
            raise refuse(f"{self.file}: staleness must be whole and not negative, got {self._read[bad][0]}")
        return self

    @cached_property
    def _read(self) -> np.ndarray:
        from asyncsim.columns import read_column

        return read_column(self.file, self.column)

    @property
    def values(self) -> np.ndarray:
        """The measured staleness, in the file's order."""
        return self._read.astype(np.int64)

    @property
    def mean(self) -> float:
        """Mean of the measured values."""
        return float(self.values.mean())

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Return a measured value, each equally likely."""
        values = np.sort(self.values)
        return values[(probability * values.size).astype(np.int64)]

    def sequence(self, probability: np.ndarray) -> np.ndarray:
        """Return the staleness of each update, in the file's order or drawn."""
        if self.order == "drawn":
            return self.quantile(probability)
        return np.resize(self.values, probability.shape)


class SlowWorker(StalenessLaw):
    """One of M = `workers` is slow: it makes every τ-th update, τ = `delay_bound`, from what it read τ − 1 before.

    The others make the τ − 1 updates between from the version just made, each at least once, and in random order:
    `asyncsim.sources.slow_worker` says how. A schedule, not a law, so it says who the workers are as well.
    """

    law: Literal["slow_worker"] = "slow_worker"
    workers: Annotated[int, Field(ge=2)]
    delay_bound: Annotated[int, Field(ge=2, le=100_000)]

    @model_validator(mode="after")
    def _all_in_a_round(self) -> SlowWorker:
        if self.workers > self.delay_bound:
            said = f"workers <= delay_bound fails: {self.workers} against {self.delay_bound}"
            raise refuse(f"{said}; each worker comes in every round of delay_bound updates")
        return self

    @property
    def mean(self) -> float:
        """(τ − 1)/τ."""
        return (self.delay_bound - 1) / self.delay_bound

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Return 0, or τ − 1 with probability 1/τ."""
        return np.where(probability < 1.0 - 1.0 / self.delay_bound, 0, self.delay_bound - 1)

    def sequence(self, probability: np.ndarray) -> np.ndarray:
        """Return τ − 1 for every τ-th update and else 0, whatever the probabilities."""
        place = np.arange(probability.size).reshape(probability.shape) % self.delay_bound
        return np.where(place == self.delay_bound - 1, place, 0)


STALENESS_LAWS: dict[str, type[Spec]] = {
    "geometric": Geometric,
    "constant": Constant,
    "uniform": Uniform,
    "pmf": ProbabilityVector,
    "empirical": Empirical,
    "slow_worker": SlowWorker,
}

AnyStaleness = Annotated[Any, *named_field("law", STALENESS_LAWS, "staleness")]

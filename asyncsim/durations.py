"""Laws of durations: service times of workers and the server, latencies of links.

A law knows its mean, variance and quantile function, and encodes itself as a row of numbers for the one compiled
sampler (`asyncsim.sampler`) that every engine calls. scipy's laws and the user's own are sampled in Python.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncsim.spec import File, Floats, NonNegative, Positive, Spec, closest, named_field, refuse

# Codes of the compiled sampler. The order is part of its table format.
CONSTANT, EXPONENTIAL, SHIFTED_EXPONENTIAL, GAMMA, LOGNORMAL, PARETO, WEIBULL, UNIFORM, MIXTURE, EMPIRICAL = range(10)


class SimulationError(RuntimeError):
    """A simulation that cannot go on: an impossible duration, or nothing that can happen any more."""


class Law(Spec):
    """A law of non-negative durations.

    A law of your own derives from this class and gives `mean`, `variance` and `quantile`; it is sampled by putting
    the addressed uniform number into `quantile`.
    """

    def quantile(self, probability: Any) -> Any:
        """Return the duration that is not exceeded with this probability (a number or an array in [0, 1])."""
        raise NotImplementedError(f"{type(self).__name__} has no quantile function")

    def cumulative(self, duration: Any) -> Any:
        """Return the probability of at most this duration, by bisection of the quantile function."""
        duration = np.asarray(duration, dtype=np.float64)
        low, high = np.zeros_like(duration), np.ones_like(duration)
        for _ in range(60):
            middle = 0.5 * (low + high)
            inside = np.asarray(self.quantile(middle)) <= duration
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        return low[()]

    def encode(self) -> list[float] | None:
        """Return the row of numbers that the compiled sampler reads; None where it cannot sample this law."""
        return None

    @cached_property
    def table(self) -> np.ndarray | None:
        """The encoded law as an array, made once."""
        row = self.encode()
        return None if row is None else np.array(row, dtype=np.float64)

    def sample(
        self,
        seed: int,
        replica: int,
        worker: int,
        first_draw: int,
        *,
        size: int,
        purpose: int,
        index: int = 0,
    ) -> np.ndarray:
        """Return the durations at the addresses of `size` consecutive draws.

        `purpose` and `index` are those of `asyncsim.streams` (index: the hop of a message; 0 for a service time).

        >>> from asyncsim import streams
        >>> times = Exponential(mean=2.0).sample(7, 0, 3, 0, size=4, purpose=streams.SERVICE)
        >>> bool(times[2] == Exponential(mean=2.0).sample(7, 0, 3, 2, size=1, purpose=streams.SERVICE)[0])
        True
        """
        if self.table is not None:
            from asyncsim.sampler import durations

            out = np.empty(size)
            durations(self.table, 0, np.uint64(seed), replica, worker, first_draw, purpose, index, out)
            return out
        from asyncsim.streams import uniforms

        draws = first_draw + np.arange(size)
        probability = uniforms(seed, replica, worker, draws, purpose, index + 1)[:, index]
        times = np.asarray(self.quantile(probability), dtype=np.float64)
        if not np.all(np.isfinite(times) & (times >= 0)):
            raise SimulationError(f"the law {self!r} gave a duration that is negative or not finite")
        return times


class Constant(Law):
    """Always the same duration `value`."""

    law: Literal["constant"] = "constant"
    value: NonNegative

    @property
    def mean(self) -> float:
        """Expected duration."""
        return self.value

    @property
    def variance(self) -> float:
        """Variance, zero."""
        return 0.0

    def quantile(self, probability: Any) -> Any:
        """Return the constant."""
        return np.full_like(np.asarray(probability, dtype=np.float64), self.value)[()]

    def cumulative(self, duration: Any) -> Any:
        """Return 1 from the constant on."""
        return np.where(np.asarray(duration) >= self.value, 1.0, 0.0)[()]

    def encode(self) -> list[float]:
        """Return (code, value)."""
        return [CONSTANT, self.value]


class Exponential(Law):
    """Exponential with the given `mean`: memoryless, the law under which staleness is geometric."""

    law: Literal["exponential"] = "exponential"
    mean: Positive

    @property
    def variance(self) -> float:
        """Variance, mean²."""
        return self.mean**2

    def quantile(self, probability: Any) -> Any:
        """Return −mean · log(1 − p)."""
        return -self.mean * np.log1p(-np.asarray(probability))

    def cumulative(self, duration: Any) -> Any:
        """Return 1 − exp(−t / mean)."""
        return -np.expm1(-np.asarray(duration) / self.mean)

    def encode(self) -> list[float]:
        """Return (code, mean)."""
        return [EXPONENTIAL, self.mean]


class ShiftedExponential(Law):
    """At least `shift`, then exponential; `mean` is that of the whole, so it must exceed `shift`."""

    law: Literal["shifted_exponential"] = "shifted_exponential"
    shift: NonNegative
    mean: Positive

    @model_validator(mode="after")
    def _mean_beyond_shift(self) -> ShiftedExponential:
        if self.mean <= self.shift:
            raise refuse(f"mean must exceed shift = {self.shift}, got {self.mean}")
        return self

    @property
    def variance(self) -> float:
        """Variance, (mean − shift)²."""
        return (self.mean - self.shift) ** 2

    def quantile(self, probability: Any) -> Any:
        """Return shift − (mean − shift) · log(1 − p)."""
        return self.shift - (self.mean - self.shift) * np.log1p(-np.asarray(probability))

    def cumulative(self, duration: Any) -> Any:
        """Return 1 − exp(−(t − shift) / (mean − shift)) from the shift on."""
        return -np.expm1(-np.maximum(np.asarray(duration) - self.shift, 0.0) / (self.mean - self.shift))

    def encode(self) -> list[float]:
        """Return (code, shift, mean of the exponential part)."""
        return [SHIFTED_EXPONENTIAL, self.shift, self.mean - self.shift]


class Gamma(Law):
    """Gamma with `shape` (1 is exponential, larger is steadier) and `mean`."""

    law: Literal["gamma"] = "gamma"
    shape: Positive
    mean: Positive

    @property
    def variance(self) -> float:
        """Variance, mean² / shape."""
        return self.mean**2 / self.shape

    def quantile(self, probability: Any) -> Any:
        """Return the inverse of the regularised incomplete gamma function, scaled."""
        from scipy.special import gammaincinv

        return gammaincinv(self.shape, probability) * self.mean / self.shape

    def cumulative(self, duration: Any) -> Any:
        """Return the regularised incomplete gamma function."""
        from scipy.special import gammainc

        return gammainc(self.shape, np.asarray(duration) * self.shape / self.mean)

    def encode(self) -> list[float]:
        """Return (code, shape, scale)."""
        return [GAMMA, self.shape, self.mean / self.shape]


class LogNormal(Law):
    """Lognormal with `mean`, whose logarithm has standard deviation `sigma`."""

    law: Literal["lognormal"] = "lognormal"
    mean: Positive
    sigma: Annotated[float, Field(gt=0, le=20)]

    @property
    def variance(self) -> float:
        """Variance, mean² (exp(sigma²) − 1)."""
        return self.mean**2 * math.expm1(self.sigma**2)

    def quantile(self, probability: Any) -> Any:
        """Return exp(mu + sigma · Φ⁻¹(p)) with mu = log mean − sigma² / 2."""
        from scipy.special import ndtri

        return np.exp(math.log(self.mean) - 0.5 * self.sigma**2 + self.sigma * ndtri(probability))

    def cumulative(self, duration: Any) -> Any:
        """Return Φ((log t − mu) / sigma)."""
        from scipy.special import ndtr

        with np.errstate(divide="ignore"):
            return ndtr((np.log(duration) - math.log(self.mean)) / self.sigma + 0.5 * self.sigma)

    def encode(self) -> list[float]:
        """Return (code, mean of the logarithm, sigma)."""
        return [LOGNORMAL, math.log(self.mean) - 0.5 * self.sigma**2, self.sigma]


class Pareto(Law):
    """Pareto (type I) with tail exponent `shape` > 1 and `mean`; no finite variance at shape ≤ 2."""

    law: Literal["pareto"] = "pareto"
    shape: Annotated[float, Field(gt=1)]
    mean: Positive

    @property
    def scale(self) -> float:
        """Smallest possible duration."""
        return self.mean * (self.shape - 1) / self.shape

    @property
    def variance(self) -> float:
        """Variance, mean² / (shape (shape − 2)), or infinity."""
        return self.mean**2 / (self.shape * (self.shape - 2)) if self.shape > 2 else math.inf

    def quantile(self, probability: Any) -> Any:
        """Return scale · (1 − p)^(−1/shape)."""
        return self.scale * (1.0 - np.asarray(probability)) ** (-1.0 / self.shape)

    def cumulative(self, duration: Any) -> Any:
        """Return 1 − (t / scale)^(−shape) from the scale on."""
        return 1.0 - np.maximum(np.asarray(duration) / self.scale, 1.0) ** -self.shape

    def encode(self) -> list[float]:
        """Return (code, scale, −1/shape)."""
        return [PARETO, self.scale, -1.0 / self.shape]


class Weibull(Law):
    """Weibull with `shape` (1 is exponential, larger is steadier) and `mean`."""

    law: Literal["weibull"] = "weibull"
    shape: Annotated[float, Field(ge=0.05)]
    mean: Positive

    @property
    def scale(self) -> float:
        """Duration that is exceeded with probability 1/e."""
        return self.mean / math.gamma(1.0 + 1.0 / self.shape)

    @property
    def variance(self) -> float:
        """Variance, scale² Γ(1 + 2/shape) − mean²."""
        return self.scale**2 * math.gamma(1.0 + 2.0 / self.shape) - self.mean**2

    def quantile(self, probability: Any) -> Any:
        """Return scale · (−log(1 − p))^(1/shape)."""
        return self.scale * (-np.log1p(-np.asarray(probability))) ** (1.0 / self.shape)

    def cumulative(self, duration: Any) -> Any:
        """Return 1 − exp(−(t / scale)^shape)."""
        return -np.expm1(-((np.asarray(duration) / self.scale) ** self.shape))

    def encode(self) -> list[float]:
        """Return (code, scale, 1/shape)."""
        return [WEIBULL, self.scale, 1.0 / self.shape]


class Uniform(Law):
    """Uniform between `low` and `high`."""

    law: Literal["uniform"] = "uniform"
    low: NonNegative
    high: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.high <= self.low:
            raise refuse(f"high must exceed low = {self.low}, got {self.high}")
        return self

    @property
    def mean(self) -> float:
        """Expected duration."""
        return 0.5 * (self.low + self.high)

    @property
    def variance(self) -> float:
        """Variance, (high − low)² / 12."""
        return (self.high - self.low) ** 2 / 12.0

    def quantile(self, probability: Any) -> Any:
        """Return low + (high − low) p."""
        return self.low + (self.high - self.low) * np.asarray(probability)

    def cumulative(self, duration: Any) -> Any:
        """Return (t − low) / (high − low), between 0 and 1."""
        return np.clip((np.asarray(duration) - self.low) / (self.high - self.low), 0.0, 1.0)

    def encode(self) -> list[float]:
        """Return (code, low, width)."""
        return [UNIFORM, self.low, self.high - self.low]


class Empirical(Law):
    """Durations drawn with equal chance from measured ones: `column` of a csv or parquet `file`, or `values`.

    `column` is a name, or a number counted from 0 where the csv file has no header.
    """

    law: Literal["empirical"] = "empirical"
    file: File | None = None
    column: str | int | None = None
    values: Floats | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Empirical:
        if (self.file is None) == (self.values is None):
            raise refuse("give either 'file' (with 'column') or 'values'")
        if self.values is not None and not self.values:
            raise refuse("'values' is empty: at least one duration is needed")
        check_durations(self.sorted_values, source="values" if self.file is None else Path(self.file).name)
        return self

    @cached_property
    def sorted_values(self) -> np.ndarray:
        """The measured durations in increasing order."""
        if self.file is None:
            return np.sort(np.array(self.values, dtype=np.float64))
        from asyncsim.columns import read_column

        return np.sort(read_column(self.file, self.column))

    @property
    def mean(self) -> float:
        """Mean of the measured durations."""
        return float(self.sorted_values.mean())

    @property
    def variance(self) -> float:
        """Variance of the measured durations (the law is the sample itself)."""
        return float(self.sorted_values.var())

    def quantile(self, probability: Any) -> Any:
        """Return the smallest measured duration whose share of the sample reaches p."""
        count = self.sorted_values.size
        position = np.ceil(np.asarray(probability) * count).astype(np.int64) - 1
        return self.sorted_values[np.clip(position, 0, count - 1)]

    def cumulative(self, duration: Any) -> Any:
        """Return the share of the sample that is at most t."""
        return np.searchsorted(self.sorted_values, duration, side="right") / self.sorted_values.size

    def encode(self) -> list[float]:
        """Return (code, count, sorted values …)."""
        return [EMPIRICAL, float(self.sorted_values.size), *self.sorted_values.tolist()]


def check_durations(values: np.ndarray, *, source: str) -> None:
    """Refuse durations that are negative or not finite."""
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        raise refuse(f"{source}: a duration is negative or not finite: {values[bad][0]:g}")


class SciPy(Law):
    """A distribution of scipy.stats by `name`, with its `args`; drawn in Python, so slowly, by SimPy only."""

    law: Literal["scipy"] = "scipy"
    name: str
    args: dict[str, float] = Field(default_factory=dict)

    @cached_property
    def distribution(self) -> Any:
        """The frozen scipy distribution."""
        from scipy import stats

        return getattr(stats, self.name)(**self.args)

    @model_validator(mode="after")
    def _check(self) -> SciPy:
        from scipy import stats

        known = sorted(name for name, value in vars(stats).items() if isinstance(value, stats.rv_continuous))
        if self.name not in known:
            raise refuse(f"scipy.stats has no continuous distribution '{self.name}'{closest(self.name, known)}")
        try:
            low, _ = self.distribution.support()
        except TypeError as error:
            raise refuse(f"scipy.stats.{self.name} does not take these args: {error}") from error
        if np.isnan(low):
            raise refuse(f"scipy.stats.{self.name} does not take these args: {self.args}")
        if low < 0:
            raise refuse(f"scipy.stats.{self.name} with these args can return negative times (from {low})")
        return self

    @property
    def mean(self) -> float:
        """Expected duration."""
        return float(self.distribution.mean())

    @property
    def variance(self) -> float:
        """Variance of the duration."""
        return float(self.distribution.var())

    def quantile(self, probability: Any) -> Any:
        """Return scipy's percent point function."""
        return self.distribution.ppf(probability)

    def cumulative(self, duration: Any) -> Any:
        """Return scipy's cumulative distribution function."""
        return self.distribution.cdf(duration)


#: Every law by the name that a scenario file uses. `Mixture` joins it below, since it holds laws itself.
LAWS: dict[str, type[Spec]] = {
    "constant": Constant,
    "exponential": Exponential,
    "shifted_exponential": ShiftedExponential,
    "gamma": Gamma,
    "lognormal": LogNormal,
    "pareto": Pareto,
    "weibull": Weibull,
    "uniform": Uniform,
    "empirical": Empirical,
    "scipy": SciPy,
}

AnyLaw = Annotated[Any, *named_field("law", LAWS, "law")]


class Mixture(Law):
    """One of `laws`, chosen with probability proportional to `weights` (hyperexponential: laws all exponential)."""

    law: Literal["mixture"] = "mixture"
    weights: Floats
    laws: Annotated[tuple[AnyLaw, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _matching(self) -> Mixture:
        if len(self.weights) != len(self.laws) or not self.laws:
            raise refuse(f"needs as many weights as laws, at least one; got {len(self.weights)} and {len(self.laws)}")
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise refuse(f"weights must be non-negative with a positive sum, got {list(self.weights)}")
        return self

    @property
    def shares(self) -> np.ndarray:
        """The weights divided by their sum."""
        return np.array(self.weights) / sum(self.weights)

    @property
    def mean(self) -> float:
        """Expected duration."""
        return float(sum(share * law.mean for share, law in zip(self.shares, self.laws, strict=True)))

    @property
    def variance(self) -> float:
        """Variance, by the law of total variance."""
        second = sum(share * (law.variance + law.mean**2) for share, law in zip(self.shares, self.laws, strict=True))
        return float(second - self.mean**2)

    def quantile(self, probability: Any) -> Any:
        """Return the quantile, by bisection between the smallest and the largest of the components' quantiles."""
        probability = np.asarray(probability, dtype=np.float64)
        parts = np.stack([np.asarray(law.quantile(probability), dtype=np.float64) for law in self.laws])
        low, high = parts.min(axis=0), parts.max(axis=0)
        for _ in range(80):
            middle = 0.5 * (low + high)
            below = self.cumulative(middle) < probability
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return high[()]

    def cumulative(self, duration: Any) -> Any:
        """Return Σ share · cumulative of the components."""
        return sum(share * law.cumulative(duration) for share, law in zip(self.shares, self.laws, strict=True))

    def components(self) -> list[tuple[float, Law]]:
        """Return (share, law) of every component, mixtures of mixtures resolved."""
        flat: list[tuple[float, Law]] = []
        for share, law in zip(self.shares.tolist(), self.laws, strict=True):
            inner = law.components() if isinstance(law, Mixture) else [(1.0, law)]
            flat += [(share * part, component) for part, component in inner]
        return flat

    def encode(self) -> list[float] | None:
        """Return (code, count, cumulative shares …, offsets …, the encoded components …)."""
        shares: list[float] = []
        offsets: list[float] = []
        body: list[float] = []
        components = self.components()
        for share, law in components:
            row = law.encode()
            if row is None:
                return None
            shares.append(share)
            offsets.append(float(2 + 2 * len(components) + len(body)))
            body += row
        return [MIXTURE, float(len(components)), *np.cumsum(shares).tolist(), *offsets, *body]


LAWS["mixture"] = Mixture

"""Every law against scipy's distribution, and its one sampler by address."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from asyncsim import streams
from asyncsim.durations import LAWS, AnyLaw, Law, SimulationError

LEVEL = 1e-3
SIZE = 20_000


def law_of(**fields):
    return TypeAdapter(AnyLaw).validate_python(fields)


class MixtureDistribution:
    """What the tests ask of a scipy distribution, for a mixture of them."""

    def __init__(self, *parts):
        self.parts = parts

    def cdf(self, x):
        return sum(weight * part.cdf(x) for weight, part in self.parts)

    def moment(self, order):
        return sum(weight * part.moment(order) for weight, part in self.parts)

    def mean(self):
        return self.moment(1)

    def var(self):
        return self.moment(2) - self.moment(1) ** 2


def exponential(mean):
    return {"law": "exponential", "mean": mean}


HYPEREXPONENTIAL = {"law": "mixture", "weights": [9, 1], "laws": [exponential(0.3), exponential(7.3)]}

#: name: (the law's fields, the same law in scipy)
CONTINUOUS = {
    "exponential": (exponential(2.0), stats.expon(scale=2.0)),
    "shifted_exponential": (
        {"law": "shifted_exponential", "shift": 0.5, "mean": 2.0},
        stats.expon(loc=0.5, scale=1.5),
    ),
    "gamma": ({"law": "gamma", "shape": 4.0, "mean": 2.0}, stats.gamma(4.0, scale=0.5)),
    "gamma, shape below 1": ({"law": "gamma", "shape": 0.3, "mean": 2.0}, stats.gamma(0.3, scale=2.0 / 0.3)),
    "lognormal": (
        {"law": "lognormal", "mean": 2.0, "sigma": 0.8},
        stats.lognorm(0.8, scale=2.0 * math.exp(-0.32)),
    ),
    "pareto": ({"law": "pareto", "shape": 2.5, "mean": 2.0}, stats.pareto(2.5, scale=1.2)),
    "pareto, no variance": ({"law": "pareto", "shape": 1.5, "mean": 3.0}, stats.pareto(1.5, scale=1.0)),
    "weibull": (
        {"law": "weibull", "shape": 0.7, "mean": 2.0},
        stats.weibull_min(0.7, scale=2.0 / math.gamma(1.0 + 1.0 / 0.7)),
    ),
    "uniform": ({"law": "uniform", "low": 0.5, "high": 3.0}, stats.uniform(0.5, 2.5)),
    "scipy": ({"law": "scipy", "name": "invgauss", "args": {"mu": 0.5}}, stats.invgauss(0.5)),
    "mixture": (HYPEREXPONENTIAL, MixtureDistribution((0.9, stats.expon(scale=0.3)), (0.1, stats.expon(scale=7.3)))),
    "mixture of mixtures": (
        {
            "law": "mixture",
            "weights": [0.25, 0.75],
            "laws": [HYPEREXPONENTIAL, {"law": "gamma", "shape": 4.0, "mean": 2.0}],
        },
        MixtureDistribution(
            (0.225, stats.expon(scale=0.3)), (0.025, stats.expon(scale=7.3)), (0.75, stats.gamma(4.0, scale=0.5))
        ),
    ),
}

#: All of them, and those whose durations are discrete.
ALL = {name: fields for name, (fields, _) in CONTINUOUS.items()} | {
    "constant": {"law": "constant", "value": 1.5},
    "empirical": {"law": "empirical", "values": [3.0, 0.5, 0.5, 2.0]},
}


def sample(law, size=SIZE, *, worker=3, draw=0, purpose=streams.SERVICE, **more):
    return law.sample(11, 2, worker, draw, size=size, purpose=purpose, **more)


def test_every_law_is_here():
    assert {fields["law"] for fields in ALL.values()} == set(LAWS)


# --- the laws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTINUOUS)
def test_mean_and_variance(name):
    fields, distribution = CONTINUOUS[name]
    law = law_of(**fields)
    assert law.mean == pytest.approx(distribution.mean(), rel=1e-12)
    assert law.variance == pytest.approx(distribution.var(), rel=1e-10)


PROBABILITIES = np.array([1e-6, 0.01, 0.3, 0.5, 0.95, 0.9999])


@pytest.mark.parametrize("name", CONTINUOUS)
def test_quantiles(name):
    fields, distribution = CONTINUOUS[name]
    law = law_of(**fields)
    times = law.quantile(PROBABILITIES)
    assert np.all(np.diff(times) > 0)
    assert distribution.cdf(times) == pytest.approx(PROBABILITIES, rel=1e-9)
    assert law.quantile(0.3) == pytest.approx(times[2], rel=1e-12)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_cumulative(name):
    law = law_of(**CONTINUOUS[name][0])
    assert law.cumulative(law.quantile(PROBABILITIES)) == pytest.approx(PROBABILITIES, rel=1e-9)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_samples_follow_the_law(name):
    fields, distribution = CONTINUOUS[name]
    times = sample(law_of(**fields))
    assert (times >= 0).all()
    assert stats.kstest(times, distribution.cdf).pvalue > LEVEL
    # The same test refuses durations that are 10 % longer.
    assert stats.kstest(1.1 * times, distribution.cdf).pvalue < LEVEL


def test_a_constant_is_constant():
    law = law_of(**ALL["constant"])
    assert set(sample(law, 100)) == {1.5}
    assert (law.mean, law.variance, law.quantile(0.2)) == (1.5, 0.0, 1.5)
    assert law.quantile(np.array([0.1, 0.9])).tolist() == [1.5, 1.5]


def test_measured_durations_are_equally_likely():
    law = law_of(**ALL["empirical"])
    assert (law.mean, law.variance) == (1.5, pytest.approx(np.var([3.0, 0.5, 0.5, 2.0])))
    assert law.quantile(np.array([0.0, 0.2, 0.5, 0.51, 0.75, 0.76, 1.0])).tolist() == [
        0.5,
        0.5,
        0.5,
        2.0,
        2.0,
        3.0,
        3.0,
    ]
    times, counts = np.unique(sample(law), return_counts=True)
    assert times.tolist() == [0.5, 2.0, 3.0]
    assert stats.chisquare(counts, SIZE * np.array([0.5, 0.25, 0.25])).pvalue > LEVEL
    assert stats.chisquare(counts, SIZE * np.array([1, 1, 1]) / 3).pvalue < LEVEL


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_measured_durations_from_a_file(suffix, tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / f"times.{suffix}"
    frame = pandas.DataFrame({"worker": [0, 1, 2], "seconds": [0.5, 2.0, 0.25]})
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    law = law_of(law="empirical", file=str(path), column="seconds")
    assert law.sorted_values.tolist() == [0.25, 0.5, 2.0]
    assert set(sample(law, 100)) == {0.25, 0.5, 2.0}


# --- the sampler --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_block_is_made_of_single_draws(name):
    law = law_of(**ALL[name])
    block = sample(law, 40, draw=5)
    assert block.tolist() == [sample(law, 1, draw=5 + draw)[0] for draw in range(40)]


@pytest.mark.parametrize("name", sorted(set(ALL) - {"constant", "empirical"}))
def test_other_addresses_give_other_durations(name):
    law = law_of(**ALL[name])
    addresses = [{}, {"worker": 4}, {"worker": -1}, {"purpose": streams.LATENCY_UP}, {"index": 1}, {"index": 2}]
    samples = [sample(law, 1000, **address) for address in addresses]
    assert len({times.tobytes() for times in samples}) == len(samples)
    correlation = np.corrcoef(stats.rankdata(samples, axis=1)) - np.eye(len(samples))
    assert np.abs(correlation).max() < 5 / math.sqrt(1000)


@pytest.mark.parametrize("purpose", [streams.SERVICE, streams.LATENCY_DOWN])
def test_the_server_has_its_own_draws(purpose):
    law = law_of(**ALL["gamma"])
    times = sample(law, worker=-1, purpose=purpose)
    assert stats.kstest(times, CONTINUOUS["gamma"][1].cdf).pvalue > LEVEL


def test_draws_beyond_32_bits_are_not_needed_but_late_ones_are():
    law = law_of(**ALL["exponential"])
    late = sample(law, 10, draw=2**32 - 11)
    assert np.isfinite(late).all()
    assert late[-1] == sample(law, 1, draw=2**32 - 2)[0]


class Triangular(Law):
    """A user's law: density 2x on [0, 1]."""

    @property
    def mean(self):
        return 2.0 / 3.0

    @property
    def variance(self):
        return 1.0 / 18.0

    def quantile(self, probability):
        return np.sqrt(probability)


def test_a_law_of_ones_own_is_sampled_through_its_quantiles():
    times = sample(Triangular())
    assert stats.kstest(times, lambda x: x**2).pvalue > LEVEL
    assert times[7] == sample(Triangular(), 1, draw=7)[0]
    assert times[7] != sample(Triangular(), 1, draw=7, index=1)[0]
    mixed = law_of(law="mixture", weights=[1, 1], laws=[exponential(1.0), Triangular()])
    assert stats.kstest(sample(mixed, 2000), lambda x: (1 - np.exp(-x) + np.clip(x, 0, 1) ** 2) / 2).pvalue > LEVEL


class Backwards(Triangular):
    """A user's law that is wrong."""

    def quantile(self, probability):
        return np.asarray(probability) - 0.5


def test_negative_durations_are_an_error():
    with pytest.raises(SimulationError, match=r"Backwards.* gave a duration that is negative or not finite"):
        sample(Backwards())


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"law": "constant", "value": -1.0}, "greater than or equal to 0"),
        ({"law": "constant", "value": math.inf}, "finite"),
        ({"law": "exponential", "mean": 0.0}, "greater than 0"),
        ({"law": "exponential", "mean": math.nan}, "finite"),
        ({"law": "shifted_exponential", "shift": 2.0, "mean": 2.0}, "mean must exceed shift = 2.0"),
        ({"law": "gamma", "shape": 0.0, "mean": 1.0}, "greater than 0"),
        ({"law": "pareto", "shape": 1.0, "mean": 1.0}, "greater than 1"),
        ({"law": "uniform", "low": 2.0, "high": 2.0}, "high must exceed low = 2.0"),
        ({"law": "empirical", "values": []}, "at least one duration"),
        ({"law": "empirical", "values": [1.0, -0.5]}, "negative or not finite: -0.5"),
        ({"law": "empirical"}, "either 'file' .* or 'values'"),
        ({"law": "mixture", "weights": [1.0], "laws": [exponential(1.0)] * 2}, "as many weights as laws"),
        ({"law": "mixture", "weights": [0.0, 0.0], "laws": [exponential(1.0)] * 2}, "positive sum"),
        ({"law": "scipy", "name": "norm"}, "can return negative times"),
        ({"law": "scipy", "name": "gama"}, r"no continuous distribution 'gama' \(did you mean 'gamma'\?\)"),
        ({"law": "scipy", "name": "gamma"}, "does not take these args"),
        ({"law": "exponental", "mean": 1.0}, r"unknown law 'exponental' \(did you mean 'exponential'\?\)"),
    ],
)
def test_laws_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        law_of(**fields)


def test_the_sampler_draws_the_streams_own_numbers():
    """Also catches a stale compiled sampler: numba does not notice that a function it calls has changed."""
    uniform = streams.uniforms(5, 1, 2, np.arange(50), streams.SERVICE, 1)[:, 0]
    times = law_of(law="uniform", low=0.0, high=1.0).sample(5, 1, 2, 0, size=50, purpose=streams.SERVICE)
    assert np.array_equal(times, uniform)

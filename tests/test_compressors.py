"""Compressors: bytes are what is said, errors are within what is promised, and slow clear versions agree exactly."""

from __future__ import annotations

import itertools
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from asyncsim import streams
from asyncsim.compressors import (
    COMPRESSORS,
    QSGD,
    AnyCompressor,
    Composed,
    Compressor,
    Identity,
    Payload,
    RandK,
    ScaledSign,
    SketchedTopK,
    TopK,
)
from asyncsim.compressors.base import MOST_DRAWS
from asyncsim.compressors.codes import pack_codes, unpack_codes
from asyncsim.compressors.count_sketch import hash_keys
from asyncsim.compressors.largest import largest
from asyncsim.compressors.subsets import random_subset

Address = tuple[int, int, int, int]
HERE: Address = (7, 2, 3, 17)

#: Every compressor, with the bytes for d coordinates written out.
EVERY: dict[str, tuple[Compressor, Callable[[int], int]]] = {
    "identity": (Identity(), lambda d: 8 * d),
    "rand_k": (RandK(k=3), lambda d: 24),
    "top_k": (TopK(k=3), lambda d: 36),
    "sketch": (SketchedTopK(k=3, rows=5, columns=11), lambda d: 440 + 24),
    "sketch, columns by k": (SketchedTopK(k=3, rows=2), lambda d: 8 * 24 + 24),
    "sign": (ScaledSign(), lambda d: 8 + math.ceil(d / 8)),
    "qsgd, 1 level": (QSGD(levels=1), lambda d: 8 + math.ceil(d * 2 / 8)),
    "qsgd, 3 levels": (QSGD(levels=3), lambda d: 8 + math.ceil(d * 3 / 8)),
    "qsgd, 4 levels": (QSGD(levels=4, scaled=True), lambda d: 8 + math.ceil(d * 4 / 8)),
    "qsgd, 2^30 levels": (QSGD(levels=2**30), lambda d: 8 + 4 * d),
    "rand_k, sign": (Composed(sparsifier=RandK(k=3), quantizer=ScaledSign()), lambda d: 8 + 1),
    "top_k, sign": (Composed(sparsifier=TopK(k=3), quantizer=ScaledSign()), lambda d: 8 + 1 + 12),
    "rand_k, qsgd": (Composed(sparsifier=RandK(k=3), quantizer=QSGD(levels=3)), lambda d: 8 + 2),
    "top_k, qsgd": (Composed(sparsifier=TopK(k=3), quantizer=QSGD(levels=3, scaled=True)), lambda d: 8 + 2 + 12),
}
NAMES = list(EVERY)


def of(name: str) -> Compressor:
    return EVERY[name][0]


def inputs(d: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Return vectors of every temper."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(d)
    one = np.zeros(d)
    one[d // 2] = -3.0
    return {
        "normal": normal,
        "heavy tails": normal**5,
        "all alike": np.where(normal < 0, -1.5, 1.5),
        "a single entry": one,
        "mostly zeros": np.where(rng.random(d) < 0.1, normal, 0.0),
        "ties": np.round(2 * normal),
    }


def compressed(compressor: Compressor, x: np.ndarray, address: Address = HERE) -> np.ndarray:
    return compressor.decode(compressor.encode(x, address))


def error_shares(compressor: Compressor, x: np.ndarray, draws: int) -> np.ndarray:
    """Return ‖x − C(x)‖² / ‖x‖² at each of many draws."""
    return np.array(
        [((x - compressed(compressor, x, (7, 0, 3, draw))) ** 2).sum() / (x**2).sum() for draw in range(draws)]
    )


# --- what is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [3, 4, 8, 9, 1001])
def test_bytes_are_the_encoded_length(name: str, d: int) -> None:
    compressor, expected = EVERY[name]
    for vector in inputs(d).values():
        payload = compressor.encode(vector, HERE)
        assert payload.nbytes == len(payload.data) == compressor.nbytes(d) == expected(d)


def test_indices_beyond_32_bits_take_8_bytes() -> None:
    assert [TopK(k=10).nbytes(2**32), TopK(k=10).nbytes(2**32 + 1)] == [120, 160]


@pytest.mark.parametrize("name", NAMES)
def test_what_travels_between_processes_is_little_more_than_the_bytes(name: str) -> None:
    payload = of(name).encode(inputs(100)["normal"], HERE)
    sent = pickle.dumps(payload)
    assert len(sent) < payload.nbytes + 100
    back = pickle.loads(sent)
    assert back == payload
    assert of(name).decode(back).tobytes() == of(name).decode(payload).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_an_address_decides_and_nothing_before_it(name: str) -> None:
    x = inputs(60)["normal"]
    addresses = list(itertools.product([7, 2**64 - 1], [0, 5], [-1, 0, 3], [0, 17]))
    first = {address: of(name).encode(x, address).data for address in addresses}
    again = {address: of(name).encode(x, address).data for address in reversed(addresses)}
    assert first == again


@pytest.mark.parametrize("name", ["rand_k", "sketch", "rand_k, sign"])
def test_workers_share_the_randomness_of_a_draw(name: str) -> None:
    x = inputs(60)["normal"]
    mine, server, later, other = (
        of(name).encode(x, address).data for address in [(7, 0, 3, 17), (7, 0, -1, 17), (7, 0, 3, 18), (7, 1, 3, 17)]
    )
    assert mine == server
    assert len({mine, later, other}) == 3


def test_rounding_is_each_message_s_own() -> None:
    x = inputs(60)["normal"]
    addresses = [(7, 0, 3, 17), (7, 0, 4, 17), (7, 0, 3, 18), (7, 1, 3, 17), (8, 0, 3, 17)]
    assert len({QSGD(levels=3).encode(x, address).data for address in addresses}) == len(addresses)


# --- what is decoded ----------------------------------------------------------------------------------------------

#: Those for which C(C(x)) = C(x), rounding or not.
IDEMPOTENT = ["identity", "rand_k", "top_k", "sign", "rand_k, sign", "top_k, sign"]


@pytest.mark.parametrize("name", IDEMPOTENT)
@pytest.mark.parametrize("d", [3, 10, 777])
def test_what_was_decoded_is_encoded_as_it_was(name: str, d: int) -> None:
    for temper, vector in inputs(d).items():
        once = compressed(of(name), vector)
        assert np.array_equal(compressed(of(name), once), once), temper


def test_qsgd_keeps_what_lies_on_its_levels_and_nothing_else() -> None:
    x = np.zeros(40)
    x[[3, 30]] = 3e-200, -4e-200
    assert np.allclose(compressed(QSGD(levels=5), x), x, rtol=1e-15, atol=0)
    once = compressed(QSGD(levels=5), inputs(40)["normal"])
    assert not np.allclose(compressed(QSGD(levels=5), once), once)


def test_a_sketch_keeps_what_it_finds_if_it_is_wide_enough() -> None:
    x = inputs(2000)["heavy tails"]
    wide, narrow = SketchedTopK(k=20, rows=5, columns=20_000), SketchedTopK(k=20, rows=5, columns=40)
    once = compressed(wide, x)
    assert np.array_equal(once, compressed(TopK(k=20), x))
    assert np.array_equal(compressed(wide, once), once)
    once = compressed(narrow, x)
    assert not np.array_equal(compressed(narrow, once), once)


@pytest.mark.parametrize("name", NAMES)
def test_linear_ones_are_linear_and_the_others_are_not(name: str) -> None:
    x, y = inputs(60, seed=1)["normal"], inputs(60, seed=2)["normal"]
    sum_first = compressed(of(name), 3.0 * x - 0.5 * y)
    sum_last = 3.0 * compressed(of(name), x) - 0.5 * compressed(of(name), y)
    assert np.allclose(sum_first, sum_last, rtol=0, atol=1e-13) == of(name).linear


ZEROS = {"zeros": np.zeros(9), "negative zeros": -np.zeros(9)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vector", ZEROS.values(), ids=ZEROS)
def test_zero_becomes_zero(name: str, vector: np.ndarray) -> None:
    assert np.array_equal(compressed(of(name), vector), np.zeros(9))


EXTREME = {"subnormal": 5e-324, "tiny": 1e-200, "large": 1e200}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", EXTREME.values(), ids=EXTREME)
def test_a_single_entry_of_any_size_survives(name: str, size: float) -> None:
    x = np.array([-size, 0.0, 0.0])
    factor = {"qsgd, 4 levels": 1 / (1 + 3 / 16), "top_k, qsgd": 1 / (1 + 3 / 9)}.get(name, 1.0)
    if "sign" in name:
        expected = np.array([-size, size, size]) / 3
    else:
        expected = factor * x
    assert np.allclose(compressed(of(name), x), expected, rtol=1e-12, atol=5e-324)


#: Where the compressor cannot miss the entry.
NOTICED = [name for name in NAMES if "rand_k" not in name]


@pytest.mark.parametrize("name", NOTICED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(name: str, bad: float) -> None:
    for place in (0, 5, 8):
        x = inputs(9)["normal"]
        x[place] = bad
        assert not np.isfinite(compressed(of(name), x)).all()


def test_a_sketch_shows_what_is_not_finite_though_another_coordinate_is_sent() -> None:
    x = np.ones(50)
    x[49] = math.nan
    assert np.isnan(compressed(SketchedTopK(k=1, rows=1, columns=1), x)).all()


@pytest.mark.parametrize("name", ["rand_k", "rand_k, sign", "rand_k, qsgd"])
def test_what_is_not_finite_is_seen_where_it_is_chosen(name: str) -> None:
    seen = []
    for draw in range(40):
        x = inputs(9)["normal"]
        x[4] = math.nan
        decoded = compressed(of(name), x, (7, 0, 0, draw))
        seen.append(4 in RandK(k=3).indices(9, (7, 0, 0, draw)))
        assert np.isfinite(decoded).all() != seen[-1]
    assert 0 < sum(seen) < 40


# --- μ ------------------------------------------------------------------------------------------------------------

D, DRAWS = 200, 120

#: Compressors whose μ is held against vectors of every temper.
PROMISES: dict[str, Compressor] = {
    "identity": Identity(),
    "rand_k": RandK(fraction=0.1),
    "rand_k, all": RandK(k=D),
    "top_k": TopK(fraction=0.1),
    "sketch": SketchedTopK(fraction=0.1, columns=30),
    "sketch, all": SketchedTopK(k=D, columns=30),
    "sign": ScaledSign(),
    "qsgd, 64 levels": QSGD(levels=64),
    "qsgd, 1 level, scaled": QSGD(levels=1, scaled=True),
    "qsgd, 16 levels, scaled": QSGD(levels=16, scaled=True),
    "rand_k, sign": Composed(sparsifier=RandK(k=20), quantizer=ScaledSign()),
    "top_k, sign": Composed(sparsifier=TopK(k=20), quantizer=ScaledSign()),
    "top_k, qsgd": Composed(sparsifier=TopK(k=20), quantizer=QSGD(levels=8)),
    "rand_k, qsgd, scaled": Composed(sparsifier=RandK(k=20), quantizer=QSGD(levels=2, scaled=True)),
}


#: The guaranteed μ of these at d = 200, worked out by hand.
MU = {
    "identity": 1.0,
    "rand_k": 0.1,
    "rand_k, all": 1.0,
    "top_k": 0.1,
    "sketch": 0.0,
    "sketch, all": 1.0,
    "sign": 0.005,
    "qsgd, 64 levels": 1 - 200 / 64**2,
    "qsgd, 1 level, scaled": 1 / (1 + math.sqrt(200)),
    "qsgd, 16 levels, scaled": 1 / (1 + 200 / 256),
    "rand_k, sign": 0.1 / 20,
    "top_k, sign": 0.1 / 20,
    "top_k, qsgd": 0.1 * (1 - 20 / 64),
    "rand_k, qsgd, scaled": 0.1 / (1 + math.sqrt(20) / 2),
}


@pytest.mark.parametrize("name", PROMISES)
def test_the_guaranteed_mu(name: str) -> None:
    assert PROMISES[name].contraction(D) == pytest.approx(MU[name], rel=1e-14)


def exceeds(shares: np.ndarray, bound: float) -> bool:
    """Say whether the mean is above the bound by more than chance: one-sided, 99 %."""
    return bool(shares.mean() > bound + 2.33 * shares.std(ddof=1) / math.sqrt(shares.size) + 1e-12)


@pytest.mark.parametrize("name", PROMISES)
@pytest.mark.parametrize("temper", inputs(D))
def test_the_error_is_within_what_mu_promises(name: str, temper: str) -> None:
    mu = PROMISES[name].contraction(D)
    assert 0.0 <= mu <= 1.0
    assert not exceeds(error_shares(PROMISES[name], inputs(D)[temper], DRAWS), 1.0 - mu)


#: Promises that would be false: what they are, and the vectors that show it.
BROKEN: dict[str, tuple[Compressor, float, str]] = {
    "top_k, 2k/d": (TopK(k=20), 0.2, "all alike"),
    "rand_k, that of top_k": (RandK(k=20), 0.5, "heavy tails"),
    "sign, that of Gaussian vectors": (ScaledSign(), 2 / math.pi, "a single entry"),
    "qsgd, not scaled, of few levels": (QSGD(levels=1), 0.0, "normal"),
    "sketch, k/d": (SketchedTopK(k=1, rows=1, columns=1), 1 / D, "a single entry"),
    "rand_k, sign: only k/d": (Composed(sparsifier=RandK(k=20), quantizer=ScaledSign()), 0.1, "heavy tails"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_false_promise_is_found_out(name: str) -> None:
    compressor, mu, temper = BROKEN[name]
    assert exceeds(error_shares(compressor, inputs(D)[temper], DRAWS), 1.0 - mu)


@pytest.mark.parametrize("temper", ["normal", "heavy tails", "all alike"])
@pytest.mark.parametrize("k", [1, 20, 150])
def test_rand_k_meets_its_mu_with_equality(temper: str, k: int) -> None:
    shares = error_shares(RandK(k=k), inputs(D)[temper], 600)
    assert abs(shares.mean() - (1 - k / D)) <= 4.5 * shares.std(ddof=1) / math.sqrt(600) + 1e-12
    assert abs(shares.mean() - (1 - (k + 40) / D)) > 4.5 * shares.std(ddof=1) / math.sqrt(600)


@pytest.mark.parametrize("temper", inputs(D))
def test_the_error_of_sign_is_known_exactly(temper: str) -> None:
    x = inputs(D)[temper]
    expected = 1 - np.abs(x).sum() ** 2 / (D * (x**2).sum())
    (share,) = error_shares(ScaledSign(), x, 1)
    assert share == pytest.approx(expected, abs=1e-13)
    with_zeros = np.sign(x) * np.abs(x).mean()  # as if a bit had three values
    if temper in ("mostly zeros", "ties", "a single entry"):
        assert ((x - with_zeros) ** 2).sum() / (x**2).sum() < expected - 1e-3


def test_sketched_values_in_place_of_exact_ones_lose_more_than_the_vector() -> None:
    d, k = 2000, 20
    compressor = SketchedTopK(k=k, rows=5, columns=40)
    for x in (np.ones(d), np.random.default_rng(3).standard_normal(d)):
        sketched, exact = [], []
        for draw in range(20):
            address = (7, 0, 0, draw)
            table = compressor.sketch(x, address)
            chosen = compressor.heaviest(table, address, d)
            guess = np.zeros(d)
            guess[chosen] = compressor.estimates(table, address, d)[chosen]
            sketched.append(((x - guess) ** 2).sum() / (x**2).sum())
            exact.append(((x - compressed(compressor, x, address)) ** 2).sum() / (x**2).sum())
        assert min(sketched) > 1.5
        assert max(exact) < 1.0


@pytest.mark.parametrize("levels", [1, 4, 64])
@pytest.mark.parametrize("scaled", [False, True])
def test_qsgd_is_right_on_average_with_the_variance_that_it_must_have(levels: int, scaled: bool) -> None:
    d, draws = 60, 1500
    x = inputs(d)["heavy tails"]
    compressor = QSGD(levels=levels, scaled=scaled)
    factor = 1.0 + compressor.variance(d) if scaled else 1.0
    decoded = factor * np.array([compressed(compressor, x, (7, 0, 0, draw)) for draw in range(draws)])
    norm = np.linalg.norm(x)
    up = np.abs(x) / norm * levels % 1.0
    deviation = np.sqrt(up * (1 - up)) * norm / levels
    random = deviation > 1e-6 * norm
    band = 4.5 / math.sqrt(draws)
    assert np.all(np.abs(decoded.mean(axis=0) - x) <= band * deviation + 0.1 * norm / levels / draws)
    spread = (decoded - x)[:, random] ** 2
    error = spread.sum(axis=1)
    assert abs(error.mean() - (deviation**2).sum()) <= 4.5 * error.std(ddof=1) / math.sqrt(draws)
    assert (deviation**2).sum() <= compressor.variance(d) * norm**2
    # Rounding down, or to the nearest, is found out.
    for wrong in (np.floor, np.rint):
        rounded = np.sign(x) * wrong(np.abs(x) / norm * levels) * norm / levels
        assert np.any(np.abs(rounded - x) > band * deviation + 0.1 * norm / levels / draws)


def test_the_variance_of_qsgd() -> None:
    figures = [QSGD(levels=levels).variance(200) for levels in (1, 2, 4, 16, 64)]
    assert figures == pytest.approx([14.14, 7.07, 3.54, 0.78, 0.0488], abs=0.01)
    assert QSGD(levels=64, scaled=True).contraction(200) == pytest.approx(1 / 1.0488, abs=1e-3)
    assert [QSGD(levels=1).contraction(200), QSGD(levels=64).contraction(200)] == [0.0, pytest.approx(0.951, abs=1e-3)]


# --- random subsets -----------------------------------------------------------------------------------------------


def ours(d: int, k: int, draw: int) -> np.ndarray:
    return random_subset(d, k, (11, 0, -1, draw))


def neighbours(d: int, k: int, draw: int) -> np.ndarray:
    """Every coordinate as often as any other, but only beside each other."""
    start = streams.integers(11, 0, -1, draw, streams.COMPRESS, 1, d)[0]
    return (start + np.arange(k)) % d


def next_free(d: int, k: int, draw: int) -> np.ndarray:
    """Take a random coordinate, or the next one that is free."""
    taken: set[int] = set()
    for t in streams.integers(11, 0, -1, draw, streams.COMPRESS, k, d - k + 1):
        while int(t) in taken:
            t += 1
        taken.add(int(t))
    return np.array(sorted(taken))


def marks(generator: Callable[[int, int, int], np.ndarray], d: int, k: int, draws: int) -> np.ndarray:
    """Return which coordinates are chosen at each draw, shape (draws, d)."""
    chosen = np.zeros((draws, d))
    for draw in range(draws):
        chosen[draw, generator(d, k, draw)] = 1.0
    return chosen


def misfit(chosen: np.ndarray) -> tuple[float, float]:
    """Return χ² of how often single coordinates, and pairs of them, are chosen."""
    draws, d = chosen.shape
    k = chosen[0].sum()
    together = chosen.T @ chosen
    figures = []
    for counts, p in ((np.diag(together), k / d), (together[np.triu_indices(d, 1)], k * (k - 1) / (d * (d - 1)))):
        figures.append(float(((counts - draws * p) ** 2).sum() / (draws * p * (1 - p))))
    return figures[0], figures[1]


@pytest.fixture(scope="module")
def by_chance() -> dict[tuple[int, int], np.ndarray]:
    """The same figures for numpy's permutations, many times: χ² of pairs has no table, for pairs share coordinates."""
    rng = np.random.default_rng(5)
    found = {}
    for d, k in ((20, 6), (20, 15)):
        figures = [misfit((rng.random((400, d)).argsort(axis=1) < k).astype(float)) for _ in range(400)]
        found[d, k] = np.sort(np.array(figures), axis=0)
    return found


#: Generators, and whether single coordinates and pairs come out as often as they should.
GENERATORS = {
    "ours": (ours, True, True),
    "neighbours": (neighbours, True, False),
    "next free": (next_free, False, False),
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(("d", "k"), [(20, 6), (20, 15)])
def test_coordinates_and_pairs_are_chosen_alike(name: str, d: int, k: int, by_chance: Any) -> None:
    generator, *right = GENERATORS[name]
    found = np.array(misfit(marks(generator, d, k, 400)))
    low, high = by_chance[d, k][[1, -2]]  # 99 %
    if name == "ours":
        assert np.all((low <= found) & (found <= high))
    else:
        assert (found <= 1.2 * high).tolist() == right


@pytest.mark.parametrize(("d", "k"), [(7, 3), (7, 5), (6, 1)])
def test_every_subset_is_as_likely_as_any_other(d: int, k: int) -> None:
    subsets = {subset: place for place, subset in enumerate(itertools.combinations(range(d), k))}
    expected = 60.0
    draws = int(expected * len(subsets))
    quantile = {35: 56.1, 21: 37.6, 6: 15.1}[len(subsets)]  # of χ² with one degree of freedom less, at 99 %
    for generator, right in ((ours, True), (next_free, k == 1)):
        counts = np.zeros(len(subsets))
        for draw in range(draws):
            counts[subsets[tuple(sorted(generator(d, k, draw).tolist()))]] += 1
        assert (((counts - expected) ** 2).sum() / expected <= quantile) == right


def test_successive_draws_are_independent() -> None:
    d, k, draws = 50, 10, 1500
    chosen = marks(ours, d, k, draws)
    overlap = (chosen[1:] * chosen[:-1]).sum(axis=1)
    assert abs(overlap.mean() - k * k / d) <= 4.5 * overlap.std() / math.sqrt(draws)


@pytest.mark.parametrize(("d", "k"), [(1, 1), (64, 64), (65, 1), (65, 64), (128, 64), (1000, 17), (1000, 983)])
def test_the_subset_is_floyd_s(d: int, k: int) -> None:
    drawn = min(k, d - k)
    taken: set[int] = set()
    for place, u in enumerate(streams.uniforms(11, 0, -1, 5, streams.COMPRESS, drawn)):
        j = d - drawn + place
        t = int(u * (j + 1))
        taken.add(j if t in taken else t)
    expected = sorted(taken) if drawn == k else sorted(set(range(d)) - taken)
    assert ours(d, k, 5).tolist() == expected


# --- slow and clear versions --------------------------------------------------------------------------------------


def slow_largest(x: np.ndarray, k: int) -> list[int]:
    """Sort by size, NaN first and ties by index."""
    sizes = np.where(np.isnan(x), np.inf, np.abs(x))
    order = sorted(range(x.size), key=lambda i: (not math.isnan(x[i]), -sizes[i], i))
    return sorted(order[:k])


def assert_largest(x: np.ndarray, k: int) -> None:
    indices, values = largest(x, k)
    assert indices.tolist() == slow_largest(x, k)
    assert values.tobytes() == x[indices].tobytes()


LONG = 70_000


def long_vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    normal = rng.standard_normal(LONG)
    spoilt = normal.copy()
    spoilt[rng.integers(0, LONG, 500)] = np.nan
    spoilt[rng.integers(0, LONG, 500)] = -np.inf
    hidden = np.zeros(LONG)  # where the sample of places that guesses the bound does not look
    looked_at = (np.arange(1 << 14) * 0.5 * (math.sqrt(5.0) - 1.0) % 1.0 * LONG).astype(int)
    hidden[np.setdiff1d(np.arange(LONG), looked_at)[::3]] = 1.0
    return {
        "normal": normal,
        "sorted": np.sort(normal),
        "few values": np.round(normal),
        "all alike": np.full(LONG, -2.0),
        "zeros of both signs": np.where(normal < 0, -0.0, 0.0),
        "mostly zeros": np.where(rng.random(LONG) < 1e-3, normal, -0.0),
        "subnormal": rng.integers(-50, 50, LONG) * 5e-324,
        "not all finite": spoilt,
        "the sample sees only zeros": hidden,
        "the sample sees only what is large": 1.0 - hidden + 1e-3 * normal,
    }


@pytest.mark.parametrize("temper", long_vectors())
@pytest.mark.parametrize("k", [1, 70, 7000, 30_000, LONG])
def test_the_largest_of_many_are_those_of_a_sort(temper: str, k: int) -> None:
    x = long_vectors()[temper]
    sizes = np.where(np.isnan(x), np.inf, np.abs(x)) + 0.0
    order = np.lexsort((np.arange(LONG), -sizes, ~np.isnan(x)))
    indices, values = largest(x, k)
    assert np.array_equal(indices, np.sort(order[:k]))
    assert values.tobytes() == x[indices].tobytes()


#: Few different sizes, so that ties are common, with both zeros and subnormal numbers.
ENTRIES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 5e-324, -5e-324, 1e300, math.nan, math.inf]) | st.floats()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(ENTRIES, min_size=1, max_size=40).flatmap(lambda x: st.tuples(st.just(x), st.integers(1, len(x)))))
def test_the_largest_of_few_are_those_of_a_sort(case: tuple[list[float], int]) -> None:
    x, k = np.array(case[0]), case[1]
    assert_largest(x, k)
    payload = TopK(k=k).encode(x, HERE)
    expected = np.zeros(x.size)
    chosen = slow_largest(x, k)
    expected[chosen] = x[chosen]
    assert TopK(k=k).decode(payload).tobytes() == expected.tobytes()
    values, indices = payload.data[: 8 * k], payload.data[8 * k :]
    assert np.frombuffer(values, "<f8").tobytes() == x[chosen].tobytes()
    assert np.frombuffer(indices, "<u4").tolist() == chosen


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=30),
    st.integers(0, 2**31),
    st.data(),
)
def test_every_compressor_takes_every_dimension(entries: list[float], draw: int, data: st.DataObject) -> None:
    x, d = np.array(entries), len(entries)
    k = data.draw(st.integers(1, d))
    sparse = [RandK(k=k), TopK(k=k)]
    quantized = [ScaledSign(), QSGD(levels=data.draw(st.integers(1, 300)))]
    composed = [Composed(sparsifier=one, quantizer=other) for one in sparse for other in quantized]
    for compressor in (Identity(), *sparse, SketchedTopK(k=k), *quantized, *composed):
        payload = compressor.encode(x, (7, 0, 1, draw))
        assert payload.nbytes == compressor.nbytes(d)
        decoded = compressor.decode(payload)
        assert decoded.shape == (d,)
        assert decoded.dtype == np.float64
        if k == d and isinstance(compressor, RandK | TopK | SketchedTopK):
            assert np.array_equal(decoded, x)
        if isinstance(compressor, Composed):
            inner = np.zeros(d)
            indices, values = compressor.sparsifier.choose(x, (7, 0, 1, draw))
            inner[indices] = compressed(compressor.quantizer, values, (7, 0, 1, draw))
            assert np.array_equal(decoded, inner)


def slow_place(key: tuple[int, int], i: int, columns: int) -> tuple[int, float]:
    """Return column and sign of coordinate i, in Python's whole numbers."""
    h = (key[0] * i + key[1]) % 2**64 >> 32
    h = ((h ^ h >> 16) * 0x85EBCA6B) % 2**32
    h = ((h ^ h >> 13) * 0xC2B2AE35) % 2**32
    h ^= h >> 16
    return h % 2**31 * columns >> 31, -1.0 if h >> 31 else 1.0


def slow_sketch(x: np.ndarray, rows: int, columns: int, address: Address) -> dict[tuple[int, int], float]:
    """Add every coordinate to its column of every row."""
    table: dict[tuple[int, int], float] = {}
    for row, key in enumerate(hash_keys(address, rows).tolist()):
        for i, value in enumerate(x.tolist()):
            column, sign = slow_place(key, i, columns)
            table[row, column] = table.get((row, column), 0.0) + sign * value
    return table


@pytest.mark.parametrize(("d", "rows", "columns"), [(1, 1, 1), (5, 2, 3), (300, 5, 40), (300, 4, 7)])
def test_the_sketch_and_its_medians_are_those_of_a_table(d: int, rows: int, columns: int) -> None:
    x, address = inputs(d)["heavy tails"], (7, 0, -1, 17)
    compressor = SketchedTopK(k=(d + 9) // 10, rows=rows, columns=columns)
    table, expected = compressor.sketch(x, (7, 0, 3, 17)), slow_sketch(x, rows, columns, address)
    assert {(r, c): table[r, c] for r in range(rows) for c in range(columns) if table[r, c]} == expected
    estimates = np.empty(d)
    for i in range(d):
        of_rows = []
        for row, key in enumerate(hash_keys(address, rows).tolist()):
            column, sign = slow_place(key, i, columns)
            of_rows.append(sign * expected[row, column])
        estimates[i] = np.median(of_rows)
    assert np.array_equal(compressor.estimates(table, address, d), estimates)
    chosen = slow_largest(estimates, compressor.count(d))
    assert compressor.heaviest(table, address, d).tolist() == chosen
    assert np.flatnonzero(compressed(compressor, x, address)).tolist() == [i for i in chosen if x[i]]


def test_hashes_are_uniform_and_pairs_of_coordinates_independent() -> None:
    """Over many draws two coordinates meet in a column as often as chance says, with signs that cancel."""
    columns, draws = 8, 2000
    keys = [hash_keys((7, 0, -1, draw), 1)[0].tolist() for draw in range(draws)]
    for i, j in itertools.combinations((0, 1, 2, 1000), 2):
        places = [(slow_place(key, i, columns), slow_place(key, j, columns)) for key in keys]
        meet = np.array([one == other for (one, _), (other, _) in places])
        signs = np.array([first * second for (_, first), (_, second) in places])
        assert abs(meet.mean() - 1 / columns) <= 4.5 * math.sqrt(7 / 64 / draws)
        assert abs((meet * signs).mean()) <= 4.5 * math.sqrt(1 / columns / draws)


def test_sketches_add_up() -> None:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((4, 500))
    compressor = SketchedTopK(k=5, columns=200)
    together = sum(compressor.sketch(x, (7, 0, worker, 17)) for worker, x in enumerate(vectors))
    whole = compressor.sketch(vectors.sum(axis=0), (7, 0, -1, 17))
    assert np.allclose(together, whole, rtol=0, atol=1e-12)
    elsewhere = sum(compressor.sketch(x, (7, 0, worker, worker)) for worker, x in enumerate(vectors))
    assert not np.allclose(elsewhere, whole, rtol=0, atol=1.0)


def test_the_server_finds_what_is_heavy_only_in_the_sum() -> None:
    rng = np.random.default_rng(4)
    vectors = 0.05 * rng.standard_normal((10, 500))
    vectors[:, 123] += 1.0
    for worker in range(10):  # each has something larger of its own, which the others cancel
        vectors[worker, worker] += 3.0
        vectors[(worker + 1) % 10, worker] -= 3.0
    compressor, address = SketchedTopK(k=1, columns=200), (7, 0, -1, 17)
    own = {int(compressor.heaviest(compressor.sketch(x, address), address, 500)[0]) for x in vectors}
    assert 123 not in own
    together = sum(compressor.sketch(x, address) for x in vectors)
    assert compressor.heaviest(together, address, 500).tolist() == [123]


@pytest.mark.parametrize("levels", [1, 2, 3, 7, 8, 1000])
def test_qsgd_is_that_of_a_loop(levels: int) -> None:
    x = inputs(45)["heavy tails"]
    payload = QSGD(levels=levels).encode(x, HERE)
    norm = np.frombuffer(payload.data[:8], "<f8")[0]
    assert norm == pytest.approx(math.sqrt(math.fsum(v * v for v in x.tolist())), rel=1e-15)
    bits = math.ceil(math.log2(2 * levels + 1))
    stream = int.from_bytes(payload.data[8:], "little")
    for i, (value, u) in enumerate(zip(x, streams.uniforms(*HERE, streams.ROUNDING, 45), strict=True)):
        exact = levels * abs(value) / norm
        level = int(exact) + (u < exact - int(exact))
        signed = -level if value < 0 else level
        assert (stream >> (bits * i)) % 2**bits - levels == signed
        assert compressed(QSGD(levels=levels), x)[i] == pytest.approx(signed * norm / levels, rel=1e-15)


@pytest.mark.parametrize("bits", [1, 3, 8, 13, 32])
@pytest.mark.parametrize("count", [1, 7, 8, 100])
def test_codes_are_packed_without_gaps(bits: int, count: int) -> None:
    codes = np.random.default_rng(1).integers(0, 2**bits, count).astype(np.uint32)
    packed = np.zeros((count * bits + 7) // 8, dtype=np.uint8)
    pack_codes(codes, bits, packed)
    assert int.from_bytes(packed.tobytes(), "little") == sum(int(c) << (bits * i) for i, c in enumerate(codes))
    out = np.empty(count, dtype=np.uint32)
    unpack_codes(packed, bits, out)
    assert np.array_equal(out, codes)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_of_other_kinds_are_taken(name: str) -> None:
    whole = np.arange(1, 13)
    expected = of(name).encode(whole.astype(np.float64), HERE)
    fixed = whole.astype(np.float64)
    fixed.flags.writeable = False
    for other in (whole, whole.tolist(), whole.astype(np.float32), fixed, np.repeat(fixed, 2)[::2]):
        assert of(name).encode(other, HERE) == expected


# --- bad input ----------------------------------------------------------------------------------------------------

ANY = TypeAdapter(AnyCompressor)

WRONG_TABLES = {
    "no levels": ({"kind": "qsgd"}, "missing|required"),
    "zero levels": ({"kind": "qsgd", "levels": 0}, "greater than or equal to 1"),
    "a level and a half": ({"kind": "qsgd", "levels": 1.5}, "integer"),
    "neither": ({"kind": "rand_k"}, "give either 'fraction' or 'k'"),
    "both": ({"kind": "top_k", "fraction": 0.1, "k": 3}, "give either 'fraction' or 'k'"),
    "k = 0": ({"kind": "top_k", "k": 0}, "greater than or equal to 1"),
    "fraction = 0": ({"kind": "rand_k", "fraction": 0.0}, "greater than 0"),
    "fraction above 1": ({"kind": "rand_k", "fraction": 1.5}, "less than or equal to 1"),
    "fraction is not a number": ({"kind": "rand_k", "fraction": math.nan}, "finite"),
    "no rows": ({"kind": "sketch", "k": 3, "rows": 0}, "greater than or equal to 1"),
    "no columns": ({"kind": "sketch", "k": 3, "columns": 0}, "greater than or equal to 1"),
    "unknown": ({"kind": "topk", "k": 3}, "unknown compressor 'topk' .did you mean 'top_k'"),
    "another's field": ({"kind": "sign", "k": 3}, "unknown field 'k'"),
    "quantizer first": (
        {"kind": "composed", "sparsifier": {"kind": "sign"}, "quantizer": {"kind": "sign"}},
        "'rand_k', 'top_k'",
    ),
    "half composed": ({"kind": "composed", "sparsifier": {"kind": "top_k", "k": 3}}, "required"),
    "not a compressor": (object(), "a compressor needs check, encode, decode, nbytes, contraction, linear"),
}


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_a_wrong_table_is_refused(name: str) -> None:
    table, message = WRONG_TABLES[name]
    with pytest.raises(ValidationError, match=message):
        ANY.validate_python(table)


def test_every_kind_is_made_from_its_table() -> None:
    composed = {"kind": "composed", "sparsifier": {"kind": "top_k", "k": 3}, "quantizer": {"kind": "qsgd", "levels": 2}}
    tables: list[dict[str, Any]] = [
        {"kind": "identity"},
        {"kind": "rand_k", "fraction": 0.01},
        {"kind": "top_k", "k": 3},
        {"kind": "sketch", "fraction": 0.1},
        {"kind": "sign"},
        {"kind": "qsgd", "levels": 4, "scaled": True},
        composed,
    ]
    assert [table["kind"] for table in tables] == list(COMPRESSORS)
    for table in tables:
        compressor = ANY.validate_python(table)
        assert type(compressor) is COMPRESSORS[table["kind"]]
        assert ANY.validate_python(compressor.model_dump()) == compressor
        assert ANY.validate_python(compressor) is compressor


UNFIT: dict[str, tuple[Compressor, int, str]] = {
    "k > d, rand_k": (RandK(k=11), 10, "k = 11 exceeds the dimension, 10"),
    "k > d, top_k": (TopK(k=11), 10, "k = 11 exceeds the dimension, 10"),
    "k > d, sketch": (SketchedTopK(k=11), 10, "k = 11 exceeds the dimension, 10"),
    "k > d, composed": (Composed(sparsifier=RandK(k=11), quantizer=ScaledSign()), 10, "k = 11 exceeds"),
    "fraction of nothing": (RandK(fraction=0.01), 10, "fraction = 0.01 of 10 coordinates keeps none"),
    "more random numbers than an address has, qsgd": (QSGD(levels=1), 2**24 + 1, "at most 16777216 coordinates"),
    "and rand_k": (RandK(fraction=0.5), 2**26, "neither k nor the rest may exceed 16777216"),
    "and composed": (
        Composed(sparsifier=TopK(fraction=0.5), quantizer=QSGD(levels=1)),
        2**26,
        "at most 16777216 coordinates",
    ),
    "a sketch of very many": (SketchedTopK(k=1), 2**32 + 1, "at most 4294967296 coordinates"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_dimension_that_does_not_fit_is_refused(name: str) -> None:
    compressor, d, message = UNFIT[name]
    with pytest.raises(ValueError, match=message):
        compressor.check(d)
    if d < 100:
        with pytest.raises(ValueError, match=message):
            compressor.encode(np.ones(d), HERE)


def test_the_limit_is_that_of_an_address() -> None:
    assert MOST_DRAWS == streams.MAX_INDEX


@pytest.mark.parametrize(("fraction", "d", "k"), [(0.01, 100, 1), (0.5, 1, 1), (0.5, 5, 3), (0.1, 24, 2), (1.0, 9, 9)])
def test_the_fraction_is_rounded_to_the_nearest_k(fraction: float, d: int, k: int) -> None:
    assert RandK(fraction=fraction).count(d) == k


@pytest.mark.parametrize("vector", [np.ones((2, 3)), 1.0, []], ids=["a matrix", "a number", "nothing"])
def test_only_vectors_are_taken(vector: Any) -> None:
    with pytest.raises(ValueError, match="one vector of shape"):
        Identity().encode(vector, HERE)


def test_complex_numbers_are_not_taken() -> None:
    with pytest.raises(ValueError, match="takes real numbers, got complex"):
        Identity().encode(np.ones(3, dtype=complex), HERE)


@pytest.mark.parametrize("address", [(7, 0), (7, 0, 1.5, 17), "abcd", 7], ids=["two", "half", "letters", "one"])
def test_an_address_is_four_whole_numbers(address: Any) -> None:
    with pytest.raises(ValueError, match="an address is four whole numbers"):
        Identity().encode(np.ones(3), address)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_another_length_are_refused(name: str) -> None:
    payload = of(name).encode(np.ones(50), HERE)
    with pytest.raises(ValueError, match=r"sends .* bytes for d = 50, got"):
        of(name).decode(Payload(payload.data[:-1], 50, HERE))


def test_checking_a_scenario_does_not_wait_for_numba() -> None:
    code = (
        "import sys; from asyncsim.compressors import *\n"
        "for c in (RandK(k=3), TopK(k=3), SketchedTopK(k=3), ScaledSign(), QSGD(levels=2)):\n"
        "    c.check(9), c.nbytes(9), c.contraction(9)\n"
        "print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""Randomness by address: the published generator, uniform, independent between addresses."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats

from asyncsim import streams

ALL_ONES = 2**32 - 1


def philox_words(counter, key):
    """Return the four output words of a raw counter and key, put together from the parts of an address."""
    draw, packed, worker, replica = (int(np.int64(np.uint32(word).view(np.int32))) for word in counter)
    packed &= ALL_ONES
    seed = np.uint64(key[0] | key[1] << 32)
    first, second = streams.philox(seed, replica, worker, draw, packed >> 24, packed & (2**24 - 1))
    return [int(word) for pair in (first, second) for word in (int(pair) & ALL_ONES, int(pair) >> 32)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ALL_ONES] * 4, [ALL_ONES] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_known_answers_of_philox4x32_10(counter, key, expected):
    """From the test vectors of Random123 (Salmon et al. 2011)."""
    assert " ".join(f"{word:08x}" for word in philox_words(counter, key)) == expected


# --- the laws of the numbers: every statistical test at level 1e-3, with one that must fail -------------------------

LEVEL = 1e-3
DRAWS = np.arange(100_000)


def uniforms_at(seed=5, replica=2, worker=3, shift=0, purpose=streams.SAMPLE, index=0):
    return streams.uniforms(seed, replica, worker, DRAWS + shift, purpose, index + 1)[:, index]


def uniform_p_value(values):
    return stats.chisquare(np.histogram(values, bins=256, range=(0.0, 1.0))[0]).pvalue


def independence_p_value(values, others):
    """Chi-square test of a 16 × 16 table."""
    table = np.histogram2d(values, others, bins=16, range=[[0.0, 1.0]] * 2)[0]
    return stats.chi2_contingency(table).pvalue


def test_uniforms_are_uniform():
    values = uniforms_at()
    assert ((values > 0) & (values < 1)).all()
    assert uniform_p_value(values) > LEVEL
    assert stats.kstest(values, "uniform").pvalue > LEVEL
    assert uniform_p_value(values**1.1) < LEVEL


@pytest.mark.parametrize("bit", [0, 1, 26, 50, 51])
def test_every_bit_is_fair(bit):
    bits = (uniforms_at() * 2**52).astype(np.uint64) >> np.uint64(bit) & np.uint64(1)
    assert stats.binomtest(int(bits.sum()), bits.size).pvalue > LEVEL


@pytest.mark.parametrize(
    "neighbour",
    [
        {"seed": 6},
        {"seed": 5 + 2**32},
        {"replica": 3},
        {"worker": 4},
        {"worker": -1},
        {"shift": 1},
        {"purpose": streams.NOISE},
        {"index": 1},
        {"worker": 2, "replica": 3},
    ],
    ids=str,
)
def test_neighbouring_addresses_are_independent(neighbour):
    assert independence_p_value(uniforms_at(), uniforms_at(**neighbour)) > LEVEL


def test_dependence_would_be_seen():
    """Numbers that count up by the golden ratio are uniform, but the next one is known."""
    golden = (DRAWS * 0.6180339887498949) % 1.0
    assert uniform_p_value(golden) > LEVEL
    assert independence_p_value(golden[:-1], golden[1:]) < LEVEL
    assert independence_p_value(uniforms_at(), 0.98 * uniforms_at() + 0.02 * uniforms_at(shift=1)) < LEVEL


def test_normals_are_standard_normal():
    values = streams.normals(5, 0, 0, DRAWS[:40_000], streams.NOISE, 3)
    for column in values.T:
        assert stats.kstest(column, "norm").pvalue > LEVEL
    assert stats.kstest(1.1 * values[:, 0], "norm").pvalue < LEVEL
    for one, other in itertools.combinations(stats.norm.cdf(values).T, 2):
        assert independence_p_value(one, other) > LEVEL


def test_integers_are_equally_likely():
    values = streams.integers(5, 0, 0, DRAWS, streams.SAMPLE, 2, 7)
    counts = np.bincount(values[:, 1], minlength=7)
    assert counts.size == 7
    assert stats.chisquare(counts).pvalue > LEVEL
    assert stats.chisquare(np.bincount(values[:, 0] * 6 // 7)).pvalue < LEVEL


# --- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [streams.uniforms, streams.normals, lambda *address: streams.integers(*address, 1000)],
    ids=["uniforms", "normals", "integers"],
)
def test_a_number_depends_on_its_address_alone(draw):
    block = draw(5, [[0], [7]], [2, -1, 4], 9, streams.SAMPLE, 6)
    assert block.shape == (2, 3, 6)
    assert np.array_equal(block[1, 1], draw(5, 7, -1, 9, streams.SAMPLE, 6))
    assert np.array_equal(block[1, 1, :4], draw(5, 7, -1, 9, streams.SAMPLE, 4))
    assert len({row.tobytes() for row in block.reshape(6, 6)}) == 6


@pytest.mark.parametrize("size", [1, 2, 9, 511, 512, 1300])
def test_normals_are_pairs_of_one_address_each(size):
    """However many are made together: bit for bit what the event loop draws one pair at a time."""
    replica, worker, draw = np.arange(40) % 7, np.arange(40) - 1, 3 * np.arange(40)
    together = streams.normals(5, replica, worker, draw, streams.NOISE, size)
    for row, address in enumerate(zip(replica, worker, draw, strict=True)):
        pairs = [streams.normal_pair(5, *address, streams.NOISE, index) for index in range((size + 1) // 2)]
        assert together[row].tolist() == list(itertools.chain(*pairs))[:size]


def test_odd_numbers_of_normals():
    assert np.array_equal(
        streams.normals(5, 0, 0, 0, streams.NOISE, 3), streams.normals(5, 0, 0, 0, streams.NOISE, 4)[:3]
    )


def test_purposes_are_distinct():
    purposes = {name: value for name, value in vars(streams).items() if name.isupper() and isinstance(value, int)}
    purposes = {name: value for name, value in purposes.items() if not name.startswith("_") and name != "MAX_INDEX"}
    assert {"SERVICE", "SERVER", "LATENCY_UP", "LATENCY_DOWN"} <= set(purposes)
    assert len(set(purposes.values())) == len(purposes)
    assert all(0 < value < 256 for value in purposes.values())


@pytest.mark.parametrize("size", [-1, streams.MAX_INDEX + 1])
def test_more_numbers_than_an_address_holds_are_refused(size):
    with pytest.raises(ValueError, match="an address holds at most"):
        streams.uniforms(0, 0, 0, 0, streams.SAMPLE, size)


def test_one_row_of_a_broadcast_address_is_made_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = streams.normals(5, np.zeros((1, 1), dtype=np.int64), -1, np.arange(1), streams.START, 4)
    assert np.array_equal(together[0, 0], streams.normals(5, 0, -1, 0, streams.START, 4))

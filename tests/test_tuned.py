"""Tuning on one half of the replicas and reporting on the other is honest; doing both on all of them is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from asyncsim.tuning import tuned

VALUES, REPLICAS = 10, 8


def noise(method, seed):
    """Results of one method at 10 steps of which none is better than another: the true mean is 0 at each."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "method": method,
            "step": np.repeat(np.arange(VALUES), REPLICAS).astype(float),
            "replica": np.tile(np.arange(REPLICAS), VALUES),
            "loss": rng.normal(size=VALUES * REPLICAS),
            "diverged": False,
        }
    )


def standardised(means, replicas):
    return np.mean(means) * np.sqrt(replicas * len(means))


def test_the_best_of_many_equal_values_is_not_reported_as_better():
    frames = [noise("sgd", seed) for seed in range(200)]
    reported = [tuned(frame, "step", "loss")["mean"].iloc[0] for frame in frames]
    assert abs(standardised(reported, REPLICAS / 2)) < 3.0
    # The control: the smallest mean of all replicas is far below the truth.
    smallest = [frame.groupby("step")["loss"].mean().min() for frame in frames]
    assert standardised(smallest, REPLICAS) < -15.0


def test_intervals_of_a_difference_that_is_none_hold_zero_as_often_as_they_say():
    missed = 0
    for seed in range(200):
        table = tuned(pd.concat([noise("a", 2 * seed), noise("b", 2 * seed + 1)]), "step", "loss")
        low, high = table.loc[1, ["difference_low", "difference_high"]]
        missed += not low <= 0.0 <= high
    assert 2 <= missed <= 20  # binomial with mean 10: beyond 3 standard deviations


def test_differences_are_paired_and_refer_to_the_first_that_has_a_best_value():
    shared = np.random.default_rng(1).normal(size=REPLICAS) * 10.0
    parts = []
    for method, step, shift in [("lost", 0.0, np.nan), ("first", 0.0, 0.0), ("first", 1.0, 5.0), ("second", 0.0, -1.0)]:
        small = 0.01 * np.arange(REPLICAS)[::-1] * (method == "second")
        columns = {"method": method, "step": step, "replica": np.arange(REPLICAS), "loss": shared + shift + small}
        parts.append(pd.DataFrame(columns | {"diverged": False}))
    table = tuned(pd.concat(parts), "step", "loss").set_index("method")
    assert np.isnan(table.loc["lost", "mean"])
    assert table.loc["first", ["step", "difference"]].tolist() == [0.0, 0.0]
    second = table.loc["second"]
    assert second["difference"] == pytest.approx(-1.0, abs=0.04)
    assert second["difference_high"] - second["difference_low"] < 0.1 < second["high"] - second["low"]

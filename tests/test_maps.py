"""The map of what was best: tiles, their numbers, and when a sweep gets one."""

import numpy as np
import pandas as pd
import pytest

from asyncsim import pictures, plots

NAMED = {"x": "workers", "y": "bandwidth", "value": "time"}
FRAME = pd.DataFrame(
    {
        "x": [1, 16, 1, 16],
        "y": [0.5, 0.5, 8.0, 8.0],
        "label": ["top_k", "plain", "top_k", None],
        "value": [3.0, 2.5, 12.345, np.nan],
    }
)


@pytest.fixture
def ax():
    return plots.new_figure()[1]


def test_each_pair_of_numbers_has_a_tile_in_the_winners_colour(ax):
    plots.winners(ax, FRAME, **NAMED)
    tiles = ax.images[0].get_array()
    assert tiles.shape == (2, 2, 4)
    assert np.array_equal(tiles[0, 0], tiles[1, 0])  # top_k won both
    assert not np.array_equal(tiles[0, 0], tiles[0, 1])
    assert np.array_equal(tiles[1, 1], np.ones(4))  # white: nothing arrived
    said = {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}
    assert said == {(0, 0): "3", (1, 0): "2.5", (0, 1): "12.3", (1, 1): "none"}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["top_k", "plain"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "16"]


@pytest.mark.parametrize("column", ["x", "y", "label", "value"])
def test_a_missing_column_is_named(ax, column):
    with pytest.raises(ValueError, match=f"winners: the frame has no column '{column}'"):
        plots.winners(ax, FRAME.drop(columns=column), **NAMED)


def test_nothing_that_arrived_is_nothing_to_draw(ax):
    with pytest.raises(ValueError, match="nothing arrived anywhere"):
        plots.winners(ax, FRAME.assign(label=None), **NAMED)


TUNED = pd.DataFrame(
    {
        "cluster.network.bandwidth": [0.5, 8.0],
        "cluster.workers.0.count": [1, 1],
        "method.compressor": ["top_k", "identity"],
        "method.step": [0.1, 0.2],
        "mean": [3.0, 2.0],
    }
)
NUMBERS = ["cluster.network.bandwidth", "cluster.workers.0.count"]
TUNE = ("method.compressor", "method.step")


@pytest.mark.parametrize(
    ("tuned", "tune", "drawn"),
    [
        (TUNED, TUNE, 1),
        (None, TUNE, 0),
        (TUNED, ("method.step",), 0),  # what to choose among has no name
        (TUNED.drop(columns=NUMBERS[0]), TUNE, 0),  # one number only
    ],
    ids=["map", "not tuned", "no names", "one number"],
)
def test_a_sweep_over_two_numbers_that_chooses_among_names_gets_a_map(ax, tuned, tune, drawn):
    paths = [path for path in (*NUMBERS, *TUNE) if tuned is None or path in tuned]
    found = list(pictures._winners(tuned, paths, tune, "time_to_target", "s"))
    assert len(found) == drawn
    for name, draw in found:
        assert name == "winners"
        assert [text.get_text() for text in draw(ax).texts] == ["3", "2"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("bandwidth", "workers")

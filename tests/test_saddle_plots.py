"""Plots of runs that meet saddles, and which pictures runs and sweeps of them get."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import asyncsim
from asyncsim import plots
from asyncsim.pictures import _labelled, draw_run, draw_sweep
from asyncsim.problems import Saddle
from asyncsim.report import growth_lines
from asyncsim.scenario import ScenarioError, build
from asyncsim.sweep import read_results, run_sweep

WAY = pd.DataFrame(
    [(name, r, 4 * t, 0.9**t * (1 - r), 0.01 * (-1) ** r * 1.1**t) for name in "ab" for r in (0, 1) for t in range(30)],
    columns=["label", "replica", "update", "x1", "x2"],
)
ENERGY = pd.DataFrame(
    [
        (replica, update, name, value)
        for replica in (3, 5)
        for update in range(0, 100, 10)
        for name, value in (
            ("energy", 100.0 - update + 1000.0 * (replica == 5)),
            ("loss", 90.0 - update),
            ("perturbations", float((update >= 30) + (update >= 70))),
        )
    ],
    columns=["replica", "update", "metric", "value"],
)
SCALING = pd.DataFrame(
    [(name, r, d, np.nan if name == "gd" and d + r > 4 else (3.0**d if name == "gd" else 10.0 * d) + r)
     for name in ("gd", "pgd") for d in (1, 2, 3, 4) for r in (0, 1, 2)],
    columns=["label", "replica", "number", "value"],
)  # fmt: skip


def test_a_sweep_says_how_what_it_took_grows_with_what_was_swept():
    """In the terminal's table; of "gd" all replicas arrive at two values only, which make no line."""
    frame = SCALING.rename(columns={"label": "method", "number": "problem.dimension", "value": "updates_to_target"})
    paths = ["problem.dimension", "method"]
    blank, head, perturbed = growth_lines(frame, paths)
    assert (blank, head.split(",")[0]) == ("", "growth of updates to target with dimension")
    # 10 d + r at d = 2, 3, 4; log(41/21)/2 = 0.335 = log 1.4 for the middle replica.
    assert perturbed.startswith("  pgd: each, from 2 to 4: + 10 (10 to 10), × 1.39")
    steep = frame.assign(updates_to_target=np.exp(frame["problem.dimension"]))
    _, _, *both = growth_lines(steep, paths)
    assert [line.split(",")[2].strip() for line in both] == ["× 2.718 (2.718 to 2.718)"] * 2
    decades = frame.assign(**{"problem.dimension": 10.0 ** frame["problem.dimension"]})
    assert "pgd: each factor of ten, from 100 to 10,000: + 10 (10 to 10)" in growth_lines(decades, paths)[2]
    assert growth_lines(frame[frame["problem.dimension"] <= 3], paths) == []  # three values are no picture


@pytest.fixture
def ax():
    return plots.new_figure()[1]


def curve(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


def test_a_landscape_shows_every_way_whole_and_what_lies_around(ax):
    assert plots.landscape(ax, WAY, Saddle(dimension=2).value) is ax
    ways = [line.get_xydata() for line in ax.lines if len(line.get_xydata()) == 30]
    assert len(ways) == 4
    np.testing.assert_array_equal(ways[0], WAY[["x1", "x2"]][:30])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    points = WAY[["x1", "x2"]].to_numpy()
    assert (points > low).all()
    assert (points < high).all()
    # Along the saddle's way out f falls: no picture without lines below the height of the saddle.
    heights = ax.collections[-1].levels
    assert heights.min() < 0.0 < heights.max()


def test_a_landscape_of_a_point_that_never_moved(ax):
    still = pd.DataFrame({"replica": [0, 0], "update": [0, 1], "x1": [0.0, 0.0], "x2": [2.0, 2.0]})
    plots.landscape(ax, still, Saddle(dimension=2).value)
    assert ax.get_xlim()[0] < 0.0 < ax.get_xlim()[1]
    with pytest.raises(ValueError, match="landscape: nothing to draw: no point is finite"):
        plots.landscape(ax, still.assign(x1=np.nan), Saddle(dimension=2).value)


def test_the_energy_of_the_first_replica_and_its_perturbations(ax):
    plots.energy(ax, ENERGY)
    assert curve(ax, "energy").get_ydata().max() == 100.0  # not the other replica's
    marks = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
    assert marks == [30, 70]
    with pytest.raises(ValueError, match="no 'energy' was measured"):
        plots.energy(ax, ENERGY[ENERGY["metric"] == "loss"])


def test_scaling_shows_medians_and_says_where_most_did_not_arrive(ax):
    plots.scaling(ax, SCALING, name="dimension", measured="updates")
    np.testing.assert_array_equal(curve(ax, "pgd").get_xydata(), [[1, 11], [2, 21], [3, 31], [4, 41]])
    np.testing.assert_array_equal(curve(ax, "gd").get_xydata(), [[1, 4], [2, 10], [3, 28]])  # one of three missed at 3
    cross = next(line for line in ax.lines if line.get_marker() == "x")
    assert cross.get_xdata().tolist() == [4]
    assert "most did not arrive" in ax.get_title(loc="right")
    assert "least and most that arrived" in ax.get_title(loc="right")
    with pytest.raises(ValueError, match="scaling: nothing to draw: no replica arrived"):
        plots.scaling(ax, SCALING.assign(value=np.nan), name="dimension", measured="updates")


def test_the_axis_of_scaling_is_logarithmic_though_a_replica_took_nothing(ax):
    wide = SCALING.assign(value=10.0 * SCALING["value"])
    wide.loc[wide["number"].eq(1) & wide["replica"].eq(0), "value"] = 0.0
    plots.scaling(ax, wide, name="dimension", measured="updates")
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] == 28.0  # below the least that is positive
    most, other = wide.assign(value=wide["value"] * (wide["number"] > 1)), plots.new_figure()[1]
    plots.scaling(other, most, name="dimension", measured="updates")
    assert other.get_yscale() == "linear"  # there is no place for a median of 0 on the other


PLOTS = {
    "landscape": (WAY, {"value": Saddle(dimension=2).value}, ["replica", "update", "x1", "x2"]),
    "energy": (ENERGY, {}, ["replica", "update", "metric", "value"]),
    "scaling": (SCALING, {"name": "dimension", "measured": "updates"}, ["replica", "number", "value"]),
}


@pytest.mark.parametrize(("name", "column"), [(name, column) for name in PLOTS for column in PLOTS[name][2]])
def test_a_missing_column_is_named(ax, name, column):
    frame, arguments, _ = PLOTS[name]
    with pytest.raises(ValueError, match=f"{name}: the frame has no column '{column}'; it has: "):
        getattr(plots, name)(ax, frame.drop(columns=column), **arguments)


# --- which pictures there are -----------------------------------------------------------------------------------------

SEACD = {"kind": "seacd", "delay_bound": 1, "epsilon": 0.1}


def plan(**parts):
    plain = {
        "seed": 7,
        "cluster": {"workers": [{"count": 2, "service": {"law": "constant", "value": 1.0}}]},
        "problem": {"kind": "saddle", "dimension": 2},
        "method": SEACD,
        "run": {"updates": 400, "replicas": 2},
        "metrics": {"every": 10, "record": ["loss", "energy", "perturbations", "x1", "x2"]},
    }
    return build(plain | parts)


@pytest.mark.parametrize(("dimension", "has"), [(2, True), (3, False)])
def test_a_run_in_the_plane_has_its_landscape_and_one_with_an_energy_has_that(tmp_path, dimension, has):
    scenario = plan(problem={"kind": "saddle", "dimension": dimension})
    run = asyncsim.run(scenario, tmp_path / "run")
    assert len(run.summary["certificate"]) == 2
    drawn = {path.name for path in draw_run(asyncsim.open_run(tmp_path / "run"), tmp_path / "run")}
    assert ("landscape.png" in drawn) is has
    assert drawn >= {"loss.png", "energy.png"}
    assert not drawn & {"x1.png", "x2.png", "perturbations.png"}


def test_a_point_in_the_plane_is_refused_on_a_line():
    with pytest.raises(ScenarioError, match="'x2' needs a problem with two coordinates"):
        plan(
            problem={"kind": "saddle_chain", "dimension": 1},
            method={"kind": "gd", "step": 0.1},
            metrics={"record": ["x1", "x2"]},
        )


def test_a_sweep_says_how_methods_ended_and_draws_what_they_took(tmp_path):
    methods = [{"kind": "gd", "step": 0.1}, SEACD]
    scenario = plan(
        metrics={"every": 10, "record": ["loss", "x1", "x2"]},
        run={"updates": 1000, "replicas": 2},
        sweep={"method": methods},
    )
    run_sweep(scenario, tmp_path / "methods", jobs=1)
    frame = read_results(tmp_path / "methods")
    assert frame["certificate"].tolist()[2:] == [2, 2]
    assert frame["finished"].tolist()[2:] == [True, True]
    assert frame["certificate"].isna().tolist() == [True, True, False, False]  # descent has no accuracy to be judged by
    assert {path.name for path in draw_sweep(tmp_path / "methods")} >= {"landscape.png", "loss.png"}

    numbers = plan(metrics={"record": ["loss"]}, sweep={"problem.dimension": [2, 3, 4, 5]})
    run_sweep(numbers, tmp_path / "numbers", jobs=1)
    names = {path.name for path in draw_sweep(tmp_path / "numbers")}
    assert "scaling.png" in names
    assert "landscape.png" not in names


def test_long_names_of_one_kind_are_cut_down_to_what_tells_them_apart():
    plain = "seacd delay_bound=2 epsilon=0.0001 blocks=3 escape_time=500"
    frame = pd.DataFrame({"method": ["gd step=0.1", plain, f"{plain} projection=box low=-1 momentum=0.8"]})
    names = _labelled(frame, ["method"])["label"].tolist()
    assert names == ["gd step=0.1", "seacd", "seacd projection=box low=-1 momentum=0.8"]
    alone = _labelled(frame.iloc[[0, 2]], ["method"])["label"].tolist()
    assert alone == ["gd step=0.1", "seacd"]
    assert _labelled(frame.replace(plain, "seacd blocks=3"), ["method"])["label"][1] == "seacd blocks=3"  # not long

from __future__ import annotations

import struct
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from asyncsim import pictures, plots
from asyncsim.trace import APPLIED, CANCELLED, Trace

TARGETS = pd.DataFrame(
    {
        "label": ["sync"] * 3 + ["async"] * 3 + ["never"] * 2,
        "replica": [0, 1, 2, 0, 1, 2, 0, 1],
        "time": [9.0, 10.0, 14.0, 3.0, np.nan, 5.0, np.nan, np.nan],
        "theory": [12.0] * 3 + [np.nan] * 5,
    }
)
METRICS = pd.DataFrame(
    [
        (replica, update, (replica + 1) * 0.1 * update, name, scale * (100 + 10 * replica - update))
        for name, scale in (("loss", 1.0), ("grad_norm", 3.0))
        for replica in range(3)
        for update in range(0, 60, 10)
    ],
    columns=["replica", "update", "time", "metric", "value"],
)
SWEEP = pd.DataFrame(
    {"workers": [8, 2, 4], "momentum": [0.87, 0.51, 0.74], "low": [0.8, 0.5, 0.7], "high": [0.9, 0.52, 0.8]}
)
OPTIMA = pd.DataFrame(
    {
        "workers": [1, 2, 1, 2, 1, 2],
        "momentum": [0.1, 0.0, 0.15, -0.2, 0.4, 0.3],
        "criterion": ["mean square"] * 2 + ["mean"] * 2 + ["mean square"] * 2,
        "label": ["κ = 5"] * 4 + ["κ = 20"] * 2,
    }
)
REGRET = pd.DataFrame(
    [
        (updates, delay, replica, (1 + delay) * updates**0.5 + replica)
        for updates in (100, 400, 900)
        for delay in (0, 3)
        for replica in (0, 1)
    ],
    columns=["updates", "delay", "replica", "regret"],
)
#: Two workers; the slow one is stopped twice. Replica 5 comes second and must not be drawn.
TRACE = Trace(
    {
        "replica": [2, 2, 2, 2, 2, 5],
        "worker": [0, 1, 0, 1, 0, 1],
        "draw": [0, 0, 1, 1, 2, 0],
        "read_version": [0, 0, 0, 1, 2, 0],
        "update": [0, -1, 1, -1, 2, 0],
        "status": [APPLIED, CANCELLED, APPLIED, CANCELLED, APPLIED, APPLIED],
        "read_time": [0, 0, 1, 1, 2.5, 0],
        "start_time": [0, 0, 1.5, 1.5, 3, 0],
        "done_time": [1, np.nan, 2.5, np.nan, 4, 7],
        "arrive_time": [1, np.nan, 2.5, np.nan, 4, 8],
        "apply_time": [1, 1.5, 2.5, 3, 4, 9],
    },
    seed=1,
    workers=2,
    updates=[3, 1],
    replicas=[2, 5],
)

#: Each plot with a frame that it draws and the columns that it needs.
PLOTS = {
    "staleness_histogram": (pd.DataFrame({"staleness": [0, 1, 1, 4]}), ["staleness"]),
    "loss": (METRICS, ["replica", "update", "metric", "value"]),
    "time_to_target": (TARGETS, ["label", "replica", "time"]),
    "timeline": (TRACE.to_frame(), ["replica", "worker", "status", "start_time", "done_time", "apply_time"]),
    "momentum_sweep": (SWEEP, ["workers", "momentum", "low", "high"]),
    "optimum_sweep": (OPTIMA, ["workers", "momentum", "criterion", "label"]),
    "regret": (REGRET, ["updates", "delay", "regret"]),
}
COLUMNS = [(name, column) for name, (_, columns) in PLOTS.items() for column in columns]


@pytest.fixture
def ax():
    return plots.new_figure()[1]


def lines(ax):
    """Return the drawn lines as (x, y), without those that only stand in the legend."""
    found = [(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)) for line in ax.lines]
    return [line for line in found if line[0].size]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


# --- every plot ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_returns_its_axes_and_touches_nothing_global(ax, name):
    before = plt.get_fignums(), dict(matplotlib.rcParams)
    frame = PLOTS[name][0]
    copy = frame.copy()
    assert getattr(plots, name)(ax, frame) is ax
    assert ax.get_xlabel()
    assert (plt.get_fignums(), dict(matplotlib.rcParams)) == before
    pd.testing.assert_frame_equal(frame, copy)


@pytest.mark.parametrize(("name", "column"), COLUMNS)
def test_a_missing_column_is_named(ax, name, column):
    with pytest.raises(ValueError, match=f"{name}: the frame has no column '{column}'; it has: "):
        getattr(plots, name)(ax, PLOTS[name][0].drop(columns=column))


@pytest.mark.parametrize("name", PLOTS)
def test_an_empty_frame_is_refused(ax, name):
    with pytest.raises(ValueError, match=f"{name}: nothing to draw: it has no rows"):
        getattr(plots, name)(ax, PLOTS[name][0].iloc[:0])


@pytest.mark.parametrize("name", ["loss", "time_to_target", "timeline"])
def test_the_time_unit_is_on_the_axis(ax, name):
    settings = {"against": "time"} if name == "loss" else {}
    getattr(plots, name)(ax, PLOTS[name][0], time_unit="ms", **settings)
    assert "(ms)" in ax.get_xlabel()


# --- staleness ----------------------------------------------------------------------------------------------------


def test_the_histogram_shows_shares_and_theory(ax):
    frame = pd.DataFrame({"staleness": pd.array([0, 1, 1, 4, None], dtype="Int64")})
    plots.staleness_histogram(ax, frame, theory=np.array([0.5, 0.25, 0.25]))
    (bars,) = ax.patches
    assert bars.get_data().values.tolist() == [0.25, 0.5, 0, 0, 0.25]
    assert bars.get_data().edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5]
    ((x, y),) = lines(ax)
    assert (x.tolist(), y.tolist()) == ([0, 1, 2], [0.5, 0.25, 0.25])
    assert legend(ax) == ["measured", "theory"]


def test_the_histogram_ends_at_the_last_thousandth(ax):
    values = [*range(10)] * 100 + [5000]
    plots.staleness_histogram(ax, pd.DataFrame({"staleness": values}), theory=np.full(6000, 1e-3))
    assert 9.5 <= ax.get_xlim()[1] < 11
    assert lines(ax)[0][0].max() == 9


def test_the_histogram_outlines_several_laws_in_their_colours(ax):
    frame = pd.DataFrame({"staleness": [0, 1, 1, 1], "label": ["b", "b", "a", "a"]})
    plots.staleness_histogram(ax, frame, theory={"a": np.array([0.0, 1.0])})
    filled = {patch.get_label(): patch.get_data().values.tolist() for patch in ax.patches if patch.get_fill()}
    assert filled == {"b": [0.5, 0.5], "a": [0, 1]}
    colour = {patch.get_label(): to_hex(patch.get_facecolor()) for patch in ax.patches if patch.get_fill()}
    assert colour["a"] != colour["b"]
    assert to_hex(ax.lines[0].get_color()) == colour["a"]
    assert legend(ax) == ["b", "a", "theory"]


def test_theory_for_an_unknown_label_is_refused(ax):
    frame = pd.DataFrame({"staleness": [0, 1], "label": ["a", "a"]})
    with pytest.raises(ValueError, match=r"theory for \['c'\], of which the frame has no rows"):
        plots.staleness_histogram(ax, frame, theory={"c": np.ones(2)})


def test_a_trace_without_applied_gradients_has_no_histogram(ax):
    with pytest.raises(ValueError, match="no gradient was applied"):
        plots.staleness_histogram(ax, pd.DataFrame({"staleness": pd.array([None], dtype="Int64")}))


# --- progress -----------------------------------------------------------------------------------------------------


def test_loss_is_the_median_over_replicas_within_its_band(ax):
    plots.loss(ax, METRICS)
    ((x, y),) = lines(ax)
    assert x.tolist() == [0, 10, 20, 30, 40, 50]
    assert y.tolist() == [110, 100, 90, 80, 70, 60]
    band = ax.collections[0].get_paths()[0].vertices
    # Three replicas 100, 110, 120 at the start: the 10 % quantile is 102, the 90 % quantile 118.
    assert sorted({value for at, value in band.tolist() if at == 0}) == [102, 118]
    assert ax.get_title(loc="right") == "median and 10–90 % band of 3 replicas"
    assert ax.get_yscale() == "linear"
    assert not legend(ax)


def test_loss_against_time_joins_measurements_by_lines(ax):
    rows = [(0, 0, 0.0, 8.0), (0, 1, 2.0, 4.0), (0, 2, 4.0, 2.0), (1, 0, 0.0, 12.0), (1, 1, 3.0, 6.0)]
    frame = pd.DataFrame(rows, columns=["replica", "update", "time", "value"]).assign(metric="loss", label="async")
    plots.loss(ax, frame, against="time")
    ((x, y),) = lines(ax)
    assert x.tolist() == [0, 2, 3, 4]
    assert y.tolist() == pytest.approx([10, (4 + 8) / 2, (3 + 6) / 2, (2 + 6) / 2])  # replica 1 keeps its 6 at the end
    assert legend(ax) == []
    plots.loss(ax, frame.drop(columns="label"), against="time", label="mine")
    assert "mine" in legend(ax)


@pytest.mark.parametrize(("last", "scale"), [(900.0, "linear"), (1100.0, "log")])
def test_the_time_axis_is_logarithmic_where_one_run_takes_ten_times_as_long(ax, last, scale):
    time = np.linspace(0.0, 1.0, 1001)
    parts = [pd.DataFrame({"label": end, "replica": 0, "time": end * time, "value": time}) for end in (100.0, last)]
    plots.loss(ax, pd.concat(parts).assign(metric="loss"), against="time")
    assert ax.get_xscale() == scale
    for (x, y), end in zip(lines(ax), (100.0, last), strict=True):
        assert x.size == 400
        assert x[-1] == end
        assert x[0] == (0.0 if scale == "linear" else end / 1000)  # no place for 0
        np.testing.assert_allclose(y, x / end, rtol=1e-9)


def test_loss_against_bytes_stands_where_the_bytes_of_its_version_were_sent(ax):
    sent = METRICS[METRICS["metric"] == "loss"].assign(metric="bytes")
    frame = pd.concat([METRICS, sent.assign(value=100.0 * sent["update"])])
    plots.loss(ax, frame, against="bytes")
    ((x, _),) = lines(ax)
    updates = np.unique(sent["update"])
    assert set(x) <= set(100.0 * updates[updates > 0])  # nothing is sent before the first version
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "bytes sent by a worker")
    with pytest.raises(ValueError, match="no 'bytes' were measured"):
        plots.loss(ax, METRICS, against="bytes")


def test_long_runs_are_drawn_on_a_common_grid(ax):
    time = np.arange(1000.0)
    parts = [pd.DataFrame({"replica": r, "time": time + r / 2, "value": time}) for r in (0, 1)]
    plots.loss(ax, pd.concat(parts).assign(metric="loss"), against="time")
    ((x, y),) = lines(ax)
    assert x.size == 400
    assert x[-1] == 999.5
    inner = x > 1
    assert np.abs(y - (np.minimum(x, 999.0) + x - 0.5) / 2)[inner].max() < 1e-9


def test_replicas_of_one_curve_measured_at_other_times_have_a_narrow_band(ax):
    """As far apart as the curve falls in the time between their measurements, which is 0.01, not 1."""
    time = np.arange(20.0)
    parts = [pd.DataFrame({"replica": r, "time": time + r / 100, "value": 100 - time}) for r in (0, 1)]
    plots.loss(ax, pd.concat(parts).assign(metric="loss"), against="time")
    ((x, y),) = lines(ax)
    assert np.abs(y - (100 - x))[(x > 0.01) & (x <= 19)].max() < 0.011


def test_a_line_to_a_value_that_is_no_number_is_not_drawn(ax):
    rows = [(0, 0.0, 4.0), (0, 2.0, 2.0), (0, 4.0, np.nan), (0, 6.0, 1.0), (1, 0.0, 4.0), (1, 3.0, 3.0), (1, 5.0, 3.0)]
    frame = pd.DataFrame(rows, columns=["replica", "time", "value"]).assign(metric="loss")
    plots.loss(ax, frame, against="time")
    ((x, y),) = lines(ax)
    assert dict(zip(x.tolist(), np.isfinite(y).tolist(), strict=True)) == {
        **{0.0: True, 2.0: True, 6.0: True},
        **{3.0: False, 4.0: False, 5.0: False},
    }


@pytest.mark.parametrize(("values", "scale"), [([1, 0.5], "linear"), ([100, 1], "log"), ([100, -1], "linear")])
def test_the_loss_axis_is_logarithmic_where_it_can_be(ax, values, scale):
    frame = pd.DataFrame({"replica": 0, "update": [0, 1], "metric": "loss", "value": values})
    assert plots.loss(ax, frame).get_yscale() == scale
    assert not ax.get_title(loc="right")


@pytest.mark.parametrize("lost", [np.inf, np.nan])
def test_a_replica_that_diverges_does_not_hide_the_others(ax, lost):
    frame = METRICS.assign(value=METRICS["value"].where(METRICS["replica"] != 2, lost))
    plots.loss(ax, frame)
    ((_, y),) = lines(ax)
    assert y.tolist() == [110, 100, 90, 80, 70, 60]


def test_another_metric_and_several_runs(ax):
    both = pd.concat([METRICS.assign(label="one"), METRICS.assign(label="two", value=METRICS["value"] * 2)])
    plots.loss(ax, both, metric="grad_norm")
    assert [y[0] for _, y in lines(ax)] == [330, 660]
    assert legend(ax) == ["one", "two"]
    assert ax.get_ylabel() == "grad norm"


def test_an_unknown_metric_names_those_there_are(ax):
    with pytest.raises(ValueError, match="no 'accuracy' with a known update; its metrics: grad_norm, loss"):
        plots.loss(ax, METRICS, metric="accuracy")
    with pytest.raises(ValueError, match="no 'loss' with a known time"):
        plots.loss(ax, METRICS.assign(time=np.nan), against="time")
    with pytest.raises(ValueError, match="against must be"):
        plots.loss(ax, METRICS, against="epoch")


def test_time_to_target_shows_means_replicas_and_failures(ax):
    plots.time_to_target(ax, TARGETS)
    assert [bar.get_width() for bar in ax.patches] == [11, 4]
    dots = [np.sort(x).tolist() for x, _ in lines(ax) if len(x) == 3 or len(np.unique(x)) > 1]
    assert dots == [[9, 10, 14], [3, 5]]
    assert [12, 12] in [x.tolist() for x, _ in lines(ax)]
    assert [text.get_text() for text in ax.texts] == ["1 of 3 did not reach it", "2 of 2 did not reach it"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["sync", "async", "never"]
    assert legend(ax) == ["theory", "mean", "replica"]


def test_machines_that_change_nothing_but_times_are_one_line(ax):
    """Two networks: in rounds they lead to the same models, without rounds they do not."""
    cells = [
        METRICS.assign(time=slow * METRICS["time"], value=fraction * METRICS["value"])
        .assign(**{"cluster.network.bandwidth": 1.0 / slow, "method.step": fraction})
        for slow in (1.0, 5.0) for fraction in (0.1, 1.0)
    ]  # fmt: skip
    paths = ["cluster.network.bandwidth", "method.step"]

    def labels(frame):
        drawn = {}
        for name, draw in pictures._curves(frame, "s", None, paths):
            drawn[name] = legend(draw(plots.new_figure()[1]))
        return drawn

    both = ["bandwidth 1, step 0.1", "bandwidth 1, step 1", "bandwidth 0.2, step 0.1", "bandwidth 0.2, step 1"]
    alike = pd.concat(cells, ignore_index=True)
    steps = ["step 0.1", "step 1"]
    assert labels(alike) == {"loss": steps, "grad_norm": steps, "loss_time": both}
    other = alike.copy()
    other.loc[len(other) - 1, "value"] += 1e-9
    assert labels(other) == {"loss": both, "grad_norm": both, "loss_time": both}
    assert labels(alike.iloc[:-1])["loss"] == both  # one has not come as far
    same_steps = alike.assign(value=alike.groupby(["replica", "update", "metric"])["value"].transform("max"))
    assert labels(same_steps)["loss"] == steps  # methods that do the same keep their lines


# --- the schedule -------------------------------------------------------------------------------------------------


def bars(collection):
    """Return (row, start, end) of each bar."""
    boxes = [path.vertices for path in collection.get_paths()]
    return sorted((round(box[:4, 1].mean(), 6), box[:, 0].min(), box[:, 0].max()) for box in boxes)


def test_the_timeline_shows_who_computed_when(ax):
    plots.timeline(ax, TRACE.to_frame())
    applied, cancelled = (item for item in ax.collections if type(item).__name__ == "PolyCollection")
    assert bars(applied) == [(0, 0, 1), (0, 1.5, 2.5), (0, 3, 4)]
    assert applied.get_array().tolist() == [0, 1, 0]
    assert bars(cancelled) == [(1, 0, 1.5), (1, 1.5, 3)]
    ways, pending, instants = (item.get_segments() for item in ax.collections if hasattr(item, "get_segments"))
    assert [(*way[:, 0], way[0, 1]) for way in ways] == [(0, 1, 0), (0, 1.5, 1), (1, 2.5, 0), (1, 3, 1), (2.5, 4, 0)]
    assert [(*way[:, 0], way[0, 1]) for way in pending] == [(3, 4, 1)]
    assert [tick[0, 0] for tick in instants] == [1, 2.5, 4]
    assert legend(ax) == ["not applied"]
    assert ax.get_xlim() == (0, 4)


def test_the_timeline_ends_with_the_updates_asked_for(ax):
    plots.timeline(ax, TRACE.to_frame(), updates=2)
    applied, cancelled = (item for item in ax.collections if type(item).__name__ == "PolyCollection")
    assert bars(applied) == [(0, 0, 1), (0, 1.5, 2.5)]
    assert bars(cancelled) == [(1, 0, 1.5), (1, 1.5, 2.5)]
    assert ax.get_xlim() == (0, 2.5)


@pytest.mark.parametrize("workers", [1, 20, 21, 64, 300])
def test_the_labels_of_the_timeline_do_not_overlap(workers):
    columns = {"replica": [0] * workers, "draw": [0] * workers, "read_version": [0] * workers, "status": [0] * workers}
    columns |= {"worker": np.arange(workers), "update": np.arange(workers)}
    columns |= {name: np.arange(1.0, workers + 1) for name in ("done_time", "arrive_time", "apply_time")}
    columns |= {name: np.zeros(workers) for name in ("read_time", "start_time")}
    figure, ax = plots.new_figure()
    plots.timeline(ax, Trace(columns, seed=1, workers=workers, updates=[workers]).to_frame(), updates=workers)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert len(boxes) == 2 or len(boxes) >= 10 or workers == 1
    assert not any(one.overlaps(two) for place, one in enumerate(boxes) for two in boxes[:place])


def test_a_trace_without_times_has_no_timeline(ax):
    frame = TRACE.to_frame().assign(apply_time=np.nan)
    with pytest.raises(ValueError, match="no update has a known time"):
        plots.timeline(ax, frame)


# --- sweeps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explicit", [0.0, -0.25])
def test_the_momentum_sweep_shows_the_measurement_over_the_curve(ax, explicit):
    plots.momentum_sweep(ax, SWEEP, explicit=explicit)
    curve, points, *_ = lines(ax)
    assert curve[0][[0, -1]] == pytest.approx([2, 8])
    assert curve[1] == pytest.approx(1 - 1 / curve[0] + explicit)
    assert (points[0].tolist(), points[1].tolist()) == ([2, 4, 8], [0.51, 0.74, 0.87])
    (intervals,) = ax.collections
    assert np.array([ends[:, 1] for ends in intervals.get_segments()]) == pytest.approx(
        np.array([[0.5, 0.52], [0.7, 0.8], [0.8, 0.9]])
    )
    assert ax.get_xscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2", "4", "8"]


def test_the_optimum_sweep_names_criterion_and_label(ax):
    plots.optimum_sweep(ax, OPTIMA)
    drawn = {line.get_label(): line for line in ax.lines if "," in line.get_label()}
    assert legend(ax) == list(drawn) == ["κ = 5, mean square", "κ = 5, mean", "κ = 20, mean square"]
    assert drawn["κ = 5, mean"].get_ydata().tolist() == [0.15, -0.2]
    first, second, third = drawn.values()
    assert first.get_color() == second.get_color() != third.get_color()
    assert first.get_linestyle() == third.get_linestyle() != second.get_linestyle()


def test_regret_is_the_mean_over_replicas_with_a_line_of_the_slope(ax):
    plots.regret(ax, REGRET)
    *measured, reference = lines(ax)
    assert [(x.tolist(), y.tolist()) for x, y in measured] == [
        ([100, 400, 900], [10.5, 20.5, 30.5]),
        ([100, 400, 900], [40.5, 80.5, 120.5]),
    ]
    x, y = reference
    assert np.log(y[1] / y[0]) / np.log(x[1] / x[0]) == pytest.approx(0.5)
    assert y[0] < 10.5
    assert y[1] < 30.5
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert legend(ax) == ["0", "3", "slope 0.5"]


def test_regret_without_a_positive_value_is_refused(ax):
    with pytest.raises(ValueError, match="no positive regret"):
        plots.regret(ax, REGRET.assign(regret=-1.0))


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_numbers_make_the_same_bytes(tmp_path, kind):
    contents = []
    for name in ("one", "two"):
        figure, ax = plots.new_figure()
        plots.timeline(ax, TRACE.to_frame())
        assert plots.save(figure, tmp_path / name / f"picture.{kind}") == tmp_path / name / f"picture.{kind}"
        contents.append((tmp_path / name / f"picture.{kind}").read_bytes())
        assert [path.name for path in (tmp_path / name).iterdir()] == [f"picture.{kind}"]
    assert contents[0] == contents[1]
    assert b"Matplotlib" not in contents[0]
    figure, ax = plots.new_figure()
    plots.timeline(ax, TRACE.to_frame(), updates=2)
    assert plots.save(figure, tmp_path / f"other.{kind}").read_bytes() != contents[0]


def test_a_picture_is_1200_by_800(tmp_path):
    figure, ax = plots.new_figure()
    plots.momentum_sweep(ax, SWEEP)
    header = plots.save(figure, tmp_path / "picture.png").read_bytes()[16:24]
    assert struct.unpack(">II", header) == (1200, 800)


def test_a_picture_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    figure, ax = plots.new_figure()
    ax.set_xlabel("$\\unknown$")
    with pytest.raises(ValueError, match="unknown"):
        plots.save(figure, path)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["picture.png"]


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"picture\.jpeg: a picture's name must end in \.png, \.svg, \.pdf"):
        plots.save(plots.new_figure()[0], tmp_path / "picture.jpeg")


def test_importing_the_module_loads_nothing_heavy():
    code = "import sys, asyncsim.plots, asyncsim.staleness; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["matplotlib", "seaborn", "pandas", "numba", "scipy", "pyarrow"]
    found = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

"""The trace's nine rules, each broken in turn, and what a trace gives back."""

from __future__ import annotations

import numpy as np
import pytest

from asyncsim.methods import SGD
from asyncsim.problems import Quadratic
from asyncsim.replay import replay
from asyncsim.results import open_trace, read_trace, write_trace
from asyncsim.scenario import Metrics, build
from asyncsim.sources import simulate
from asyncsim.stored import StoredTrace
from asyncsim.trace import APPLIED, CANCELLED, COLUMNS, DISCARDED, OPTIONAL, REQUIRED, TIMES, Trace, TraceError


def made(policy, **cluster):
    groups = [
        {"count": 3, "service": {"law": "exponential", "mean": 1.0}},
        {"service": {"law": "constant", "value": 4.0}},
    ]
    run = {"updates": 30, "replicas": 2}
    return simulate(build({"seed": 3, "cluster": {"workers": groups, **cluster}, "policy": policy, "run": run}))


#: Rows of every kind that a simulation makes, two replicas, bytes on the wire.
LIVELY = made(
    {"kind": "ringmaster", "max_staleness": 2, "on_stale": "cancel"},
    network={"topology": "path", "latency": {"law": "constant", "value": 0.5}},
)
#: Three gradients to an update.
BATCHED = made({"kind": "k_async", "k": 3})


class Parts:
    """What a trace is built from, to be changed."""

    def __init__(self, trace):
        self.columns = {name: trace[name].copy() for name in trace.columns}
        self.rest = {
            "seed": trace.seed,
            "workers": trace.workers,
            "updates": trace.updates.copy(),
            "replicas": trace.replicas.copy(),
            "events": trace.events,
        }

    def __getitem__(self, name):
        return self.columns[name]

    def take(self, rows):
        self.columns = {name: column[rows] for name, column in self.columns.items()}

    def drop(self, *names):
        for name in names:
            self.columns.pop(name, None)

    def row(self, status, number=0):
        """The number of a row of this status, not counting each replica's first ones."""
        return int(np.flatnonzero((self["status"] == status) & (self["read_version"] > 2))[number])

    def build(self):
        return Trace(self.columns, **self.rest)


# Mutations: each takes the parts of a valid trace and breaks one rule.


def a_column_is_shorter(parts):
    parts.columns["draw"] = parts["draw"][:-1]


def replicas_decrease(parts):
    parts.rest["replicas"] = parts.rest["replicas"][::-1]


def a_replica_without_its_number_of_updates(parts):
    parts.rest["updates"] = parts.rest["updates"][:1]


def no_workers(parts):
    parts.rest["workers"] = 0


def a_negative_number_of_updates(parts):
    parts.rest["updates"][1] = -1


def an_unknown_replica(parts):
    parts["replica"][-1] = 2


def a_worker_too_many(parts):
    parts["worker"][4] = 4


def a_negative_worker(parts):
    parts["worker"][4] = -1


def a_negative_draw(parts):
    parts["draw"][4] = -1


def an_unknown_status(parts):
    parts["status"][4] = 4


def a_negative_status(parts):
    parts["status"][4] = -1


def an_infinite_time(parts):
    parts["done_time"][parts.row(APPLIED)] = np.inf


def computed_before_it_started(parts):
    row = parts.row(APPLIED)
    parts["done_time"][row] = np.nextafter(parts["start_time"][row], -1.0)


def applied_before_it_was_read(parts):
    """The times between are unknown."""
    row = parts.row(CANCELLED)
    parts["start_time"][row] = np.nan
    parts["apply_time"][row] = parts["read_time"][row] - 1.0


def two_rows_change_places(parts):
    order = np.arange(parts["worker"].size)
    order[[10, 11]] = order[[11, 10]]
    parts.take(order)


def replicas_are_mixed(parts):
    parts.take(np.arange(parts["worker"].size)[::-1])


def ties_are_not_in_order_of_workers(parts):
    """Two gradients of one update arrive at the same time, the higher worker first."""
    later = 1 + np.flatnonzero((np.diff(parts["update"]) == 0) & (np.diff(parts["worker"]) < 0))[0]
    parts["arrive_time"][later - 1] = parts["arrive_time"][later]


def the_same_row_twice(parts):
    parts.take(np.sort([*range(parts["worker"].size), 10]))


def updates_go_back_without_times(parts):
    parts.drop(*TIMES)
    order = np.arange(parts["worker"].size)
    order[[11, 12]] = order[[12, 11]]  # the last row of update 3 and the first of update 4
    parts.take(order)


def a_negative_version(parts):
    parts["read_version"][parts.row(CANCELLED)] = -1


def a_gradient_of_the_future(parts):
    row = parts.row(APPLIED)
    parts["read_version"][row] = parts["update"][row] + 1


def an_applied_gradient_without_update(parts):
    parts["update"][parts.row(APPLIED)] = -1


def a_discarded_gradient_with_update(parts):
    row = parts.row(CANCELLED)
    parts["update"][row] = parts["read_version"][row]


def a_version_after_the_last_update(parts):
    parts["read_version"][parts.row(CANCELLED)] = 30


def an_update_after_the_last(parts):
    parts.rest["updates"][0] = 29


def an_update_is_missing(parts):
    row = parts.row(APPLIED)
    parts["status"][row], parts["update"][row] = DISCARDED, -1


def fewer_updates_than_announced(parts):
    parts.rest["updates"][1] = 31


def a_gradient_is_lost(parts):
    parts.take(np.delete(np.arange(parts["worker"].size), parts.row(CANCELLED)))


def the_first_draw_is_not_zero(parts):
    """The worker keeps all its draws, each one higher."""
    mine = (parts["replica"] == 1) & (parts["worker"] == 2)
    parts["draw"][mine] += 1


def a_draw_twice(parts):
    """In an imported trace, where draws need not be consecutive."""
    parts.rest["consecutive_draws"] = False
    parts.drop(*TIMES)
    mine = np.flatnonzero((parts["replica"] == 1) & (parts["worker"] == 2))
    parts["draw"][mine[2]] = parts["draw"][mine[3]]


def one_update_at_two_times(parts):
    rows = np.flatnonzero(parts["update"] == 5)
    parts["apply_time"][rows[0]] += 1e-9


def updates_at_decreasing_times(parts):
    row = parts.row(APPLIED)
    parts["apply_time"][row] += 10.0


def staleness_counted_from_the_start_of_computing(parts):
    """The classic mistake: the version that was current when computing began."""
    ends = np.sort(parts["apply_time"][(parts["status"] == APPLIED) & (parts["replica"] == 0)])
    first = parts["replica"] == 0
    parts["read_version"][first] = np.searchsorted(ends, parts["start_time"][first], side="right")
    parts["read_version"][first] = np.minimum(parts["read_version"][first], 29)
    used = first & (parts["status"] == APPLIED)
    parts["read_version"][used] = np.minimum(parts["read_version"][used], parts["update"][used])


def two_versions_too_old(parts):
    """One too old can be right: with before_apply the model leaves at the time of the update, without it."""
    parts["read_version"][parts.row(APPLIED)] -= 2


BROKEN = [
    *((1, mutation, LIVELY) for mutation in (a_column_is_shorter, replicas_decrease, no_workers)),
    *((1, mutation, LIVELY) for mutation in (a_replica_without_its_number_of_updates, a_negative_number_of_updates)),
    *((2, mutation, LIVELY) for mutation in (an_unknown_replica, a_worker_too_many, a_negative_worker)),
    *((2, mutation, LIVELY) for mutation in (a_negative_draw, an_unknown_status, a_negative_status)),
    *((3, mutation, LIVELY) for mutation in (an_infinite_time, computed_before_it_started, applied_before_it_was_read)),
    *((4, mutation, LIVELY) for mutation in (two_rows_change_places, replicas_are_mixed, the_same_row_twice)),
    *((4, mutation, BATCHED) for mutation in (ties_are_not_in_order_of_workers, updates_go_back_without_times)),
    *((5, mutation, LIVELY) for mutation in (a_negative_version, a_gradient_of_the_future, an_update_after_the_last)),
    *((5, mutation, LIVELY) for mutation in (an_applied_gradient_without_update, a_discarded_gradient_with_update)),
    (5, a_version_after_the_last_update, LIVELY),
    *((6, mutation, LIVELY) for mutation in (an_update_is_missing, fewer_updates_than_announced)),
    *((7, mutation, LIVELY) for mutation in (a_gradient_is_lost, the_first_draw_is_not_zero, a_draw_twice)),
    (8, one_update_at_two_times, BATCHED),
    (8, updates_at_decreasing_times, LIVELY),
    *((9, mutation, LIVELY) for mutation in (staleness_counted_from_the_start_of_computing, two_versions_too_old)),
]


@pytest.mark.parametrize(("rule", "mutation", "trace"), [pytest.param(*case, id=case[1].__name__) for case in BROKEN])
def test_a_broken_rule_is_named(rule, mutation, trace):
    parts = Parts(trace)
    mutation(parts)
    with pytest.raises(TraceError, match=rf"^rule {rule}: "):
        parts.build()


def test_every_rule_is_broken_by_some_case():
    assert {rule for rule, *_ in BROKEN} == set(range(1, 10))


def test_the_message_shows_the_row():
    parts = Parts(LIVELY)
    parts["draw"][4] = -5
    with pytest.raises(TraceError, match=r"\(row 4: replica=0, .*draw=-5"):
        parts.build()


# --- what is allowed ----------------------------------------------------------------------------------------------


def nothing(parts):
    pass


def no_times(parts):
    parts.drop(*TIMES)


def unknown_times(parts):
    for name in TIMES:
        parts[name][:] = np.nan


def some_times_unknown(parts):
    parts["start_time"][::3] = np.nan
    parts["read_time"][::4] = np.nan


def only_what_is_required(parts):
    parts.drop(*OPTIONAL)


def draws_with_gaps_from_elsewhere(parts):
    parts["draw"][:] *= 3
    parts.rest["consecutive_draws"] = False


def replicas_of_any_number(parts):
    parts["replica"][:] = np.where(parts["replica"] == 0, 4, 9)
    parts.rest["replicas"] = [4, 9]


@pytest.mark.parametrize("trace", [LIVELY, BATCHED], ids=["lively", "batched"])
@pytest.mark.parametrize(
    "change",
    [
        nothing,
        no_times,
        unknown_times,
        some_times_unknown,
        only_what_is_required,
        draws_with_gaps_from_elsewhere,
        replicas_of_any_number,
    ],
)
def test_these_are_traces(change, trace):
    parts = Parts(trace)
    change(parts)
    assert len(parts.build()) == len(trace)


def test_the_lively_trace_has_rows_of_every_kind():
    assert set(LIVELY["status"].tolist()) == {APPLIED, DISCARDED, CANCELLED}
    assert set(LIVELY.columns) == set(COLUMNS) - {"block"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.columns.pop("draw"), "missing \\['draw'\\]"),
        (lambda parts: parts.columns.update(delay=parts["draw"]), "unknown \\['delay'\\]"),
        (lambda parts: parts.columns.update(draw=parts["draw"] + 0.5), "column draw: must hold whole numbers"),
        (lambda parts: parts.columns.update(worker=parts["draw"] + 2**31), "column worker: .* fit int32"),
        (lambda parts: parts.columns.update(draw=parts["draw"][:, None]), "column draw: must have one dimension"),
    ],
)
def test_columns_of_another_shape_are_refused(change, message):
    parts = Parts(LIVELY)
    change(parts)
    with pytest.raises(TraceError, match=message):
        parts.build()


# --- frozen -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LIVELY.columns, "updates", "replicas"])
def test_arrays_are_read_only(name):
    column = getattr(LIVELY, name) if name in ("updates", "replicas") else LIVELY[name]
    with pytest.raises(ValueError, match="read-only"):
        column[0] = 1


def test_a_trace_keeps_its_own_copy():
    parts = Parts(LIVELY)
    trace = parts.build()
    parts["update"][:] = 7
    parts.rest["updates"][:] = 7
    assert trace.sha256() == LIVELY.sha256()


# --- what it gives back -------------------------------------------------------------------------------------------


def test_staleness_is_derived_from_applied_gradients():
    applied = LIVELY["status"] == APPLIED
    expected = (LIVELY["update"] - LIVELY["read_version"])[applied]
    assert LIVELY.staleness().tolist() == expected.tolist()
    late = LIVELY["update"][applied] >= 20
    assert LIVELY.staleness(warmup=20).tolist() == expected[late].tolist()
    assert late.sum() == 20


def test_update_times_are_those_of_the_rows():
    times = BATCHED.update_times(1)
    assert times.shape == (30,)
    mine = BATCHED["replica"] == 1
    for update, time in enumerate(times):
        assert set(BATCHED["apply_time"][mine & (BATCHED["update"] == update)]) == {time}
    parts = Parts(BATCHED)
    parts.drop(*TIMES)
    assert np.isnan(parts.build().update_times(1)).all()
    assert (BATCHED.has_times, parts.build().has_times) == (True, False)


def test_slices_are_the_replicas():
    found = [(replica, count, set(LIVELY["replica"][rows].tolist())) for replica, count, rows in LIVELY.slices()]
    assert found == [(0, 30, {0}), (1, 30, {1})]


def test_a_frame_has_names_for_statuses_and_staleness_where_there_is_one():
    frame = LIVELY.to_frame()
    assert list(frame.columns) == [*LIVELY.columns, "staleness"]
    assert frame["status"].cat.categories.tolist() == ["applied", "discarded", "cancelled", "lost"]
    assert frame["staleness"].notna().tolist() == (frame["status"] == "applied").tolist()
    assert frame["staleness"].dropna().tolist() == LIVELY.staleness().tolist()
    assert [frame[name].dtype for name in ("replica", "draw")] == [np.dtype("int32"), np.dtype("int64")]


def test_an_absent_column_is_an_error_that_lists_the_others():
    with pytest.raises(KeyError, match=r"no column 'block'; it has: replica, worker"):
        LIVELY["block"]
    assert ("block" in LIVELY, "draw" in LIVELY) == (False, True)


# --- the hash -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*REQUIRED, *OPTIONAL])
def test_every_column_is_in_the_hash(name, monkeypatch):
    monkeypatch.setattr("asyncsim.trace.check", lambda trace: None)  # the change need not make sense
    parts = Parts(LIVELY)
    parts.columns["block"] = np.full(len(LIVELY), -1, dtype=np.int32)
    before = parts.build().sha256()
    assert parts.build().sha256() == before
    parts[name][7] += 1
    assert parts.build().sha256() != before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 4),
        ("workers", 5),
        ("updates", [30, 31]),
        ("replicas", [0, 2]),
        ("events", [(0, 1.0, -1, "barrier")]),
    ],
)
def test_everything_else_is_in_the_hash(name, value, monkeypatch):
    monkeypatch.setattr("asyncsim.trace.check", lambda trace: None)
    parts = Parts(LIVELY)
    parts.rest[name] = value
    assert parts.build().sha256() != LIVELY.sha256()


def test_a_column_that_is_there_or_not_is_in_the_hash():
    parts = Parts(LIVELY)
    parts.drop("bytes_up")
    assert parts.build().sha256() != LIVELY.sha256()


@pytest.mark.parametrize("consecutive_draws", [True, False])
@pytest.mark.parametrize("times", [True, False], ids=["times", "no_times"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_a_trace_may_have_no_rows(replicas, times, consecutive_draws, tmp_path):
    names = (*REQUIRED, *(TIMES if times else ()))
    about = {"seed": 3, "workers": 2, "consecutive_draws": consecutive_draws}
    empty = Trace({name: np.empty(0, dtype=COLUMNS[name]) for name in names}, **about, updates=[0] * replicas)
    write_trace(empty, tmp_path / "empty.parquet")
    traces = [empty, read_trace(tmp_path / "empty.parquet"), open_trace(tmp_path / "empty.parquet")]
    if consecutive_draws:
        traces.append(StoredTrace(tmp_path / "empty.parquet"))
    for trace in traces:
        assert len(trace) == 0
        assert (trace.seed, trace.workers) == (3, 2)
        assert trace.replicas.tolist() == list(range(replicas))
        assert trace.updates.tolist() == [0] * replicas
        assert trace.columns == names
        assert trace.staleness().size == 0
        assert trace.sha256() == empty.sha256()
        run = replay(trace, SGD(step=0.1), Quadratic(eigenvalues=[1.0, 2.0]), metrics=Metrics(record=("loss", "bytes")))
        assert run.final_iterates.tolist() == [[1.0, 1.0]] * replicas
        assert run.metrics["value"][run.metrics["metric"] == "bytes"].tolist() == [0.0] * replicas
    with pytest.raises(TraceError, match="lacks update 0"):
        Trace({name: empty[name] for name in names}, **about, updates=[1] * replicas)

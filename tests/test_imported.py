"""Schedules of others: what is read, what is derived, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import asyncsim
from asyncsim import Trace, TraceError, cli, import_trace
from asyncsim.export import to_csv
from asyncsim.results import read_trace
from asyncsim.scenario import build
from tests.same import assert_same_trace

ASYNC = {"kind": "async"}
POLICIES = [
    ASYNC,
    {"kind": "sync"},
    {"kind": "k_async", "k": 2},
    {"kind": "rennala", "batch": 3},
    {"kind": "ringmaster", "max_staleness": 2, "on_stale": "cancel"},
]


def simulated(
    *, policy: dict = ASYNC, workers: int = 4, replicas: int = 1, updates: int = 300, **cluster: dict
) -> Trace:
    service = {"law": "gamma", "shape": 2.0, "mean": 1.0}
    data = {
        "seed": 5,
        "cluster": {"workers": [{"count": workers, "service": service}], **cluster},
        "policy": policy,
        "run": {"updates": updates, "replicas": replicas},
    }
    return asyncsim.simulate(build(data))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def table(path: Path, trace: Trace, names: dict[str, str]) -> Path:
    """Write some columns of a trace under other names, in an order that says nothing."""
    frame = trace.to_frame()[list(names)].rename(columns=names)
    shuffled = frame.sort_values(list(names.values()), ascending=False, kind="stable")
    shuffled.to_csv(path, index=False)
    return path


# --- tables


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy["kind"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_exported_trace_comes_back(policy: dict, suffix: str, tmp_path: Path) -> None:
    network = {"latency": {"law": "exponential", "mean": 0.1}}
    trace = simulated(policy=policy, replicas=2, network=network)
    file = tmp_path / f"trace.{suffix}"
    if suffix == "csv":
        to_csv(trace, file)
    else:
        trace.to_frame().to_parquet(file)
    assert_same_trace(import_trace(file, seed=5), trace)


DERIVED = {
    "start and end": ({"worker": "rank", "start_time": "begin", "done_time": "finish"}, ["start=begin", "end=finish"]),
    "read and apply": ({"worker": "rank", "read_time": "read", "apply_time": "apply"}, []),
    "workers in order of updates": ({"worker": "rank", "update": "update"}, []),
    "versions": ({"worker": "rank", "read_version": "version", "update": "update"}, ["read_version=version"]),
    "staleness": ({"worker": "rank", "staleness": "delay", "update": "update"}, []),
}


@pytest.mark.parametrize("case", DERIVED)
def test_what_a_table_does_not_say_is_derived(case: str, tmp_path: Path) -> None:
    trace = simulated()
    names, mapped = DERIVED[case]
    maps = dict(text.split("=") for text in ["worker=rank", *mapped])
    found = import_trace(table(tmp_path / "table.csv", trace, names), columns=maps)
    for name in ("update", "read_version", "worker", "draw"):
        assert found[name].tolist() == trace[name].tolist(), name


def test_versions_from_times_need_no_model_of_the_server(tmp_path: Path) -> None:
    """Where it replies before it applies, 'the version after the worker's last update' is wrong."""
    busy = {"service": {"law": "constant", "value": 0.05}, "reply": "before_apply"}
    trace = simulated(server=busy)
    names = {"worker": "worker", "read_time": "read", "apply_time": "apply"}
    times = import_trace(table(tmp_path / "a.csv", trace, names))
    assert times["read_version"].tolist() == trace["read_version"].tolist()
    workers = import_trace(table(tmp_path / "b.csv", trace, {"worker": "worker", "update": "update"}))
    assert (workers["read_version"] != trace["read_version"]).mean() > 0.9


def test_workers_may_have_any_names_and_times_any_unit(tmp_path: Path) -> None:
    text = "host,start,end\nnode-b,1700000000.5,1700000002.5\nnode-a,1700000000.0,1700000001.0\n"
    trace = import_trace(write(tmp_path / "log.csv", text), columns={"worker": "host"}, scale=1e3)
    assert trace["worker"].tolist() == [0, 1]
    assert trace["apply_time"].tolist() == [1000.0, 2500.0]
    assert trace["read_time"].tolist() == [0.0, 500.0]


def test_numbers_of_workers_are_kept_where_they_may_be(tmp_path: Path) -> None:
    file = write(tmp_path / "log.csv", "worker\n3\n1\n3\n")
    assert import_trace(file)["worker"].tolist() == [1, 0, 1]
    kept = import_trace(file, workers=4)
    assert kept["worker"].tolist() == [3, 1, 3]
    assert kept.workers == 4


def test_columns_without_a_header_go_by_number(tmp_path: Path) -> None:
    file = write(tmp_path / "log.csv", "1,0.0,2.0\n0,0.0,1.0\n")
    trace = import_trace(file, columns={"worker": "0", "start": "1", "end": "2"})
    assert trace["worker"].tolist() == [0, 1]


# --- delays, ages


def test_delays_say_who_made_each_update(tmp_path: Path) -> None:
    trace = simulated(workers=6)
    file = tmp_path / "delays.csv"
    np.savetxt(file, trace.staleness())  # 0.000000000000000000e+00, as numpy writes it
    found = import_trace(file)
    assert found["read_version"].tolist() == trace["read_version"].tolist()
    assert found.workers == 6
    pairs = set(zip(found["worker"].tolist(), trace["worker"].tolist(), strict=True))
    assert len(pairs) == 6  # the same workers under other names


def test_delays_that_no_server_answers_say_nothing_of_workers(tmp_path: Path) -> None:
    file = write(tmp_path / "delays.csv", "delay\n0\n1\n1\n2\n")  # updates 2 and 3 both read version 1
    found = import_trace(file)
    assert found["worker"].tolist() == [0, 0, 0, 0]
    assert import_trace(file, workers=3).workers == 3


def test_ages_are_those_of_the_newest_gradients(tmp_path: Path) -> None:
    trace = simulated(policy={"kind": "k_async", "k": 2}, workers=5)
    newest = np.zeros(5, dtype=int)
    lines = []
    for update in range(int(trace.updates[0])):
        rows = trace["update"] == update
        newest[trace["worker"][rows]] = trace["read_version"][rows]
        lines.append(update - newest)
    file = tmp_path / "ages.csv"
    np.savetxt(file, lines, delimiter=",")
    found = import_trace(file)
    # The first line has the gradients of all workers, since nothing is older than they are.
    rest = [
        {(u, w, r) for u, w, r in zip(t["update"], t["worker"], t["read_version"], strict=True) if u > 0}
        for t in (found, trace)
    ]
    late = {(u, w, r) for u, w, r in rest[1] if r == 0}
    assert rest[0] == rest[1] - late
    assert len(late) < 5


# --- bad input

BAD = {
    "words": ("delay\n0\nsoon\n", {}, "line 3, column 'delay': must be a number, got 'soon'"),
    "nothing": ("worker,start,end\n0,0,1\n,0,1\n", {}, "line 3, column 'worker': must name a worker, got nothing"),
    "blank lines count": ("delay\n\n0\n\n-1\n", {}, "line 5, column 'delay': must be a whole number from 0, got '-1'"),
    "half a version": ("delay\n0\n0.5\n", {}, "line 3, column 'delay': must be a whole number from 0, got '0.5'"),
    "infinite": ("worker,start,end\n0,0,inf\n", {}, "line 2, column 'end': must be finite, got 'inf'"),
    "before the file": ("0\n2\n", {}, "line 2, column '0': at most 1 updates are before this one"),
    "ages jump": ("0,0\n1,0\n2,2\n", {}, "line 3, column '1': an age grows by at most 1 from line to line, got '2'"),
    "nothing came in": ("0,0\n1,1\n", {}, "line 2, column '0': no worker has a newer gradient"),
    "end before start": (
        "worker,start,end\n0,2,1\n",
        {},
        "line 2, column 'end': must not be before 'start' of the same gradient, got '1'",
    ),
    "no end": ("worker,start,end\n0,0,\n", {}, "line 2, column 'end': must be a number, since it says which update"),
    "gap": ("worker,update\n0,0\n0,2\n", {}, "line 3, column 'update': updates must count 0, 1, 2, … without gaps"),
    "future": ("update,read_version\n0,0\n1,2\n", {}, "line 3, column 'read_version': must not exceed the update"),
    "status": ("worker,status\n0,done\n", {}, "line 2, column 'status': must be one of applied, discarded"),
    "unknown names": ("rank,t0\n0,1\n", {}, "no column has a name of a trace's; there is: rank, t0"),
    "not enough": ("start,x\n0,1\n", {}, "only start known; needs at least one of worker"),
    "no version": ("update\n0\n1\n", {}, "which version was read does not follow from update"),
    "ragged": ("0,1\n0\n", {}, "line 2: has 1 columns, the first line has 2"),
    "twice": ("worker,worker\n0,1\n", {}, "two columns are named 'worker'"),
    "empty": ("", {}, "is empty"),
    "header alone": ("worker\n", {}, "has no rows"),
    "map of nothing": ("a\n1\n", {"columns": {"worker": "b"}}, "column 'b' (of --map worker=…) not found; there is: a"),
    "map to nothing": ("a\n1\n", {"columns": {"wroker": "a"}}, "unknown 'wroker' (did you mean 'worker'?)"),
    "mapped twice": ("a,b\n1,1\n", {"columns": {"end": "a", "done": "b"}}, "two columns are to be 'done'"),
    "too many workers": ("worker\n0\n1\n2\n", {"workers": 2}, "has 3 workers, more than workers = 2"),
    "no scale": ("worker,start,end\n0,0,1\n", {"scale": 0.0}, "scale must be a positive number, got 0.0"),
    "draw twice": ("worker,draw\n0,0\n0,0\n", {}, "rule 7: draws of a worker must be distinct"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, tmp_path: Path) -> None:
    text, settings, said = BAD[case]
    file = write(tmp_path / "bad.csv", text)
    with pytest.raises(TraceError) as error:
        import_trace(file, **settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith((str(file), "--map", "scale"))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        import_trace(tmp_path / "none.csv")
    with pytest.raises(TraceError, match="is a folder"):
        import_trace(tmp_path)
    with pytest.raises(TraceError, match="not a parquet file"):
        import_trace(write(tmp_path / "words.parquet", "words"))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="not a csv file"):
        import_trace(tmp_path / "bytes.csv")


# --- the command


def test_the_command_writes_a_trace_that_replays(tmp_path: Path) -> None:
    out = tmp_path / "trace.parquet"
    file = write(tmp_path / "log.csv", "rank,begin,finish\n0,0,1\n1,0,2\n0,1,3\n")
    arguments = ["import-trace", str(file), "-o", str(out), "--map", "worker=rank", "--map", "start=begin"]
    result = CliRunner().invoke(cli.main, [*arguments, "--map", "end=finish", "--seed", "9"])
    assert result.exit_code == 0
    assert "3 gradients of 2 workers, 3 updates, mean staleness 0.6667, with times" in result.output
    trace = read_trace(out)
    assert (trace.seed, trace["read_version"].tolist()) == (9, [0, 0, 1])


@pytest.mark.parametrize("arguments", [[], ["--map", "worker"], ["--map", "worker=a", "--map", "worker=b"]])
def test_the_command_writes_nothing_for_bad_input(arguments: list[str], tmp_path: Path) -> None:
    file = write(tmp_path / "bad.csv", "delay\nsoon\n")
    result = CliRunner().invoke(cli.main, ["import-trace", str(file), "-o", str(tmp_path / "out.parquet"), *arguments])
    assert result.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("trace.csv", "its name must end in .parquet"),
        ("taken.parquet", "is a folder; give the name of a file"),
        ("log.parquet", "is what is to be read; choose another --out"),
        ("log.csv/trace.parquet", "cannot be written"),
    ],
)
def test_the_command_overwrites_nothing_that_it_should_not(out: str, said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "log.csv", "worker,start,end\n0,0,1\n")
    pd.read_csv(file).to_parquet(tmp_path / "log.parquet")
    (tmp_path / "taken.parquet").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    result = CliRunner().invoke(cli.main, ["import-trace", str(tmp_path / "log.parquet"), "-o", str(tmp_path / out)])
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {tmp_path / out}: {said}")
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before

"""What a scenario file means: defaults, inheritance, overrides, files and modules beside it; its documentation."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from asyncsim import documents
from asyncsim.cluster import Cluster, Server, WorkerGroup
from asyncsim.methods import SGD
from asyncsim.network import TOPOLOGIES, Network
from asyncsim.policies import Async
from asyncsim.problems import Quadratic
from asyncsim.scenario import (
    MODEL_METRICS,
    RUN_METRICS,
    Metrics,
    RunSettings,
    Scenario,
    ScenarioError,
    Sweep,
    build,
    load,
)
from asyncsim.schema import CHOICES, scenario_schema
from asyncsim.spec import Spec
from asyncsim.sweep import cells

ROOT = Path(__file__).parent.parent
VALID = Path(__file__).parent / "cases" / "valid"
FILES = sorted([*VALID.glob("*.toml"), *(ROOT / "scenarios").glob("*.toml")])

SMALL = {
    "cluster": {"workers": [{"count": 4, "service": {"law": "exponential", "mean": 1.0}}]},
    "run": {"updates": 100},
}
MODEL = {"problem": {"kind": "quadratic", "eigenvalues": [1.0]}, "method": {"kind": "sgd", "step": 0.1}}


def small(**changes: object) -> dict:
    """Return a small document with values at dotted paths (`__` for the dot) changed."""
    data = json.loads(json.dumps(SMALL | MODEL))
    for path, value in changes.items():
        documents.set_path(data, path.replace("__", "."), value)
    return data


# --- meaning ------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    scenario = build(SMALL)
    assert (scenario.name, scenario.seed, scenario.policy) == ("scenario", 0, Async())
    assert (scenario.run.source, scenario.run.replicas, scenario.run.warmup) == ("simulate", 1, 0)
    assert (scenario.metrics.record, scenario.metrics.every, scenario.sweep) == (("loss",), None, None)
    assert scenario.cluster is not None
    assert (scenario.cluster.server.reply, scenario.cluster.network, scenario.cluster.time_unit) == (
        "after_apply",
        None,
        "s",
    )


def test_groups_of_workers_are_numbered_in_order() -> None:
    laws = [{"law": "constant", "value": value} for value in (1.0, 2.0)]
    scenario = build(small(cluster__workers=[{"count": 2, "service": laws[0]}, {"service": laws[1]}]))
    assert scenario.cluster is not None
    assert scenario.workers == 3
    assert [law.mean for law in scenario.cluster.laws] == [1.0, 1.0, 2.0]


def test_whole_numbers_serve_as_numbers() -> None:
    assert build(small(method__step=1, run__time=5)).run.time == 5.0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_resolved_scenario_is_the_scenario(file: Path) -> None:
    scenario = load(file)
    again = build(json.loads(json.dumps(scenario.resolved())), folder=file.parent)
    assert again.resolved() == scenario.resolved()
    assert again.sha256() == scenario.sha256()


def test_the_hash_is_of_what_decides_a_result() -> None:
    base = build(small()).sha256()
    assert build(small(name="other", description="words")).sha256() == base
    assert build(small(seed=1)).sha256() != base
    assert build(small(method__momentum=0.0)).sha256() == base
    assert build(small(method__momentum=0.1)).sha256() != base


def test_a_scenario_takes_objects_made_in_python() -> None:
    scenario = build({**SMALL, "problem": Quadratic(eigenvalues=(1.0,)), "method": SGD(step=0.1)})
    assert scenario == build(small())
    assert scenario.sha256() == build(small()).sha256()


# --- inheritance and overrides ------------------------------------------------------------------------------------


def test_extends_lays_one_file_over_another(tmp_path: Path) -> None:
    base = """
    seed = 5
    [[cluster.workers]]
    count = 4
    service = { law = "exponential", mean = 1.0 }
    [policy]
    kind = "k_sync"
    k = 2
    [problem]
    kind = "quadratic"
    eigenvalues = [1.0]
    noise = 0.5
    [method]
    kind = "sgd"
    step = 0.1
    momentum = 0.5
    [run]
    updates = 100
    """
    (tmp_path / "base.toml").write_text(base)
    (tmp_path / "middle.toml").write_text('extends = "base.toml"\nseed = 6\n[method]\nstep = 0.2\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "top.toml").write_text(
        'extends = "../middle.toml"\n[policy]\nkind = "async"\n[problem]\nkind = "pl_example"\n'
        '[[cluster.workers]]\nservice = { law = "constant", value = 1.0 }\n'
    )
    scenario = load(tmp_path / "folder" / "top.toml")
    assert scenario.seed == 6
    assert (scenario.method.step, scenario.method.momentum) == (0.2, 0.5)  # a table of the same kind is merged
    assert scenario.policy == Async()  # one of another kind is replaced, k and all
    assert (scenario.problem.kind, scenario.problem.noise) == ("pl_example", 0.0)
    assert scenario.workers == 1  # a list is replaced


def test_overrides() -> None:
    file = ROOT / "scenarios" / "quickstart.toml"
    changed = load(file, overrides={"cluster.workers.0.count": 3, "run.time": 9.0, "policy": {"kind": "sync"}})
    assert (changed.workers, changed.run.time, changed.policy.kind) == (3, 9.0, "sync")
    assert load(file).workers == 16


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('{ law = "constant", value = 1.0 }', {"law": "constant", "value": 1.0}),
        ('"quoted"', "quoted"),
        ("async", "async"),
        ("loss < 0.1", "loss < 0.1"),
        ("", ""),
        ("[" * 2000, "[" * 2000),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_values_on_the_command_line(text: str, value: object) -> None:
    assert documents.parse_value(text) == value


def test_files_are_found_beside_the_scenario_wherever_one_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(VALID / "laws.toml").cluster is not None
    with pytest.raises(ScenarioError, match="no such file"):
        build(tomllib.loads((VALID / "laws.toml").read_text()))


def test_modules_are_found_beside_the_scenario_and_nowhere_after(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    before = list(sys.path)
    scenario = load(VALID / "own.toml")
    assert sys.path == before
    assert scenario.problem.depth == 2.0
    assert scenario.resolved()["problem"] == {"kind": "own:Bowl", "depth": 2.0}
    assert scenario.resolved()["cluster"]["workers"][0]["service"] == {"law": "own:Triangular", "longest": 2.0}


# --- axes of a sweep ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ([3, 1], [3, 1]),
        ({"start": 1, "stop": 7, "num": 4}, [1, 3, 5, 7]),
        ({"start": 1, "stop": 2, "num": 3}, [1.0, 1.5, 2.0]),
        ({"start": 0.1, "stop": 0.3, "num": 3}, [0.1, 0.2, 0.3]),
        ({"start": 1e-20, "stop": 3e-20, "num": 3}, [1e-20, 2e-20, 3e-20]),
        ({"start": 5.0, "stop": 1.0, "num": 1}, [5.0]),
        ({"start": 1.0, "stop": 0.0, "num": 3}, [1.0, 0.5, 0.0]),
    ],
)
def test_axes(axis: object, values: list) -> None:
    found = build({**small(), "sweep": {"method.step": axis}}).sweep
    assert found is not None
    assert found.grid["method.step"] == values
    assert [type(value) for value in found.grid["method.step"]] == [type(value) for value in values]


# --- the JSON Schema ----------------------------------------------------------------------------------------------


def references(node: object) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*(references(value) for value in node.values()))
    return set().union(*(references(item) for item in node)) if isinstance(node, list) else set()


def test_the_schema_is_whole() -> None:
    schema = json.loads(json.dumps(scenario_schema()))
    assert references(schema) <= {f"#/$defs/{name}" for name in schema["$defs"]}
    assert set(schema["properties"]) == {*Scenario.model_fields, "extends"}
    assert schema["required"] == ["run"]
    assert '"choice"' not in json.dumps(schema)


@pytest.mark.parametrize("what", CHOICES)
def test_the_schema_knows_every_choice_and_its_keys(what: str) -> None:
    tag, registry = CHOICES[what]
    choices = {c["properties"][tag].get("const"): c for c in scenario_schema()["$defs"][what]["anyOf"]}
    assert set(choices) == {*registry, None}  # None: one's own
    for name, kind in registry.items():
        assert set(choices[name]["properties"]) == {tag, *kind.model_fields}
        assert tag in choices[name]["required"]


# --- docs/scenario.md is true -------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "scenario.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
SECTIONS = {
    "Top level": Scenario,
    "`[cluster]`": Cluster,
    "`[[cluster.workers]]`": WorkerGroup,
    "`[cluster.server]`": Server,
    "`[cluster.network]`": Network,
    "`[method]`": SGD,
    "`[run]`": RunSettings,
    "`[metrics]`": Metrics,
    "`[sweep]`": Sweep,
}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_example_of_the_page_is_valid(number: int) -> None:
    """The first is complete; the others are parts, and the rest of a scenario is put around them."""
    block = tomllib.loads(BLOCKS[number])
    around = {**SMALL, **MODEL, **block, "cluster": SMALL["cluster"] | block.get("cluster", {})}
    scenario = build(around if number else block, folder=VALID)
    assert scenario.sweep is None or cells(scenario)


def test_the_complete_example_shows_every_section() -> None:
    assert set(tomllib.loads(BLOCKS[0])) == set(Scenario.model_fields)


def in_toml(value: object) -> str:
    """Return a default as the page writes it."""
    if value is None:
        return "none"
    if isinstance(value, Spec):
        return "{ " + ", ".join(f"{key} = {in_toml(item)[1:-1]}" for key, item in value.model_dump().items()) + " }"
    return json.dumps(value)


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_has_every_key_with_its_default(heading: str) -> None:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    said = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*?) \|", section))
    fields = {name: field for name, field in SECTIONS[heading].model_fields.items() if name != "grid"}
    assert set(fields) <= set(said)
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        if field.is_required():
            assert said[name] == "required", name
        elif said[name] != "see below":
            shown = said[name].strip("`")
            assert shown == "none" if default is None else tomllib.loads(f"v = {shown}")["v"] == plain(default), name


def plain(default: object) -> object:
    return json.loads(default.model_dump_json()) if isinstance(default, Spec) else json.loads(json.dumps(default))


def test_the_page_names_every_choice_its_keys_and_every_metric() -> None:
    names = {*TOPOLOGIES, *MODEL_METRICS, *RUN_METRICS}
    for tag, registry in CHOICES.values():
        names |= set(registry)
        names |= {field for kind in registry.values() for field in kind.model_fields if field != tag}
    assert {name for name in names if not re.search(rf"[`\"]{name}[`\"]", PAGE)} == set()

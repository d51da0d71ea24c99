"""Bad input ends in one line that names file, key, value and what is allowed; exit code 2; nothing is written."""

from __future__ import annotations

import copy
import datetime
import math
import shutil
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from asyncsim.cli import main
from asyncsim.report import check_lines
from asyncsim.scenario import Scenario, ScenarioError, build, load
from asyncsim.schema import CHOICES
from asyncsim.sweep import cells

TESTS = Path(__file__).parent
INVALID = TESTS / "cases" / "invalid"
VALID = TESTS / "cases" / "valid"
SHIPPED = TESTS.parent / "scenarios"
VALID_FILES = sorted([*VALID.glob("*.toml"), *SHIPPED.glob("*.toml")])


def refusal(arguments: list[str]) -> str:
    """Run the command line on bad input; return its one line."""
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip("\n")


# --- one mistake each ---------------------------------------------------------------------------------------------


def test_there_are_enough_mistakes_and_each_has_its_message():
    names = {path.stem for path in INVALID.glob("*.toml")}
    assert len(names) >= 200
    assert names == {path.stem for path in INVALID.glob("*.txt")}


@pytest.mark.parametrize("name", sorted(path.stem for path in INVALID.glob("*.toml")))
def test_mistake(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(INVALID)
    expected = (INVALID / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
    for what, (_, registry) in CHOICES.items():  # "{law}" stands for the names of all laws, and so on
        expected = expected.replace(f"allowed: {{{what}}}", f"allowed: {', '.join(registry)}")
    said = refusal(["run", f"{name}.toml", "--out", str(tmp_path / "run")]).replace(f"{INVALID}/", "")
    if expected.endswith("…"):  # the rest is in the words of another library
        assert said.startswith(expected[:-1])
    else:
        assert said == expected
    assert list(tmp_path.iterdir()) == []
    assert refusal(["check", f"{name}.toml"]).replace(f"{INVALID}/", "") == said


def test_the_mistakes_are_the_only_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without its mistake is a scenario: repairing one of each family makes it valid."""
    monkeypatch.chdir(INVALID)
    repairs = {
        "count_zero": {"cluster.workers.0.count": 1},
        "pareto_without_mean": {"cluster.workers.0.service.shape": 1.1},
        "bandwidth_zero": {"cluster.network.bandwidth": 1.0},
        "k_sync_beyond_workers": {"policy.k": 4},
        "clock_stands_still": {"run.updates": 10},
        "worker_never_lets_the_server_finish": {"cluster.server.reply": "after_apply"},
        "nan_momentum": {"method.momentum": 0.5},
        "accuracy_of_a_quadratic": {"metrics.record": ["loss", "grad_norm"]},
        "target_not_recorded": {"metrics.record": ["grad_norm"]},
        "sweep_by_not_recorded": {"metrics.record": ["distance"]},
        "own_arguments_refused": {"problem.depth": 1.0},
        "staleness_pmf_sums_wrong": {"run.staleness.probabilities": [0.5, 0.5]},
    }
    for name, values in repairs.items():
        with pytest.raises(ScenarioError):
            cells_of(load(f"{name}.toml"))
        cells_of(load(f"{name}.toml", overrides=values))


def cells_of(scenario: Scenario) -> None:
    if scenario.sweep is not None:
        cells(scenario)


# --- mistakes that need no file, or that no file of text can hold -------------------------------------------------

SMALL = """
run.updates = 10
[[cluster.workers]]
service = { law = "exponential", mean = 1.0 }
"""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = '\xff'\n", "not valid TOML: 'utf-8' codec can't decode"),
        (b"seed = " + b"9" * 5000, "not valid TOML: Exceeds the limit"),
        (b"seed = " + b"[" * 3000 + b"]" * 3000, "not valid TOML"),
        (b"seed = 0x" + b"f" * 5000 + SMALL.encode(), "seed: must be less than 18446744073709551616, got a very long"),
        (b"description = 0x" + b"f" * 5000 + SMALL.encode(), "description: must be a string, got a very long number"),
        (b'"a\\nb" = 1\n' + SMALL.encode(), "unknown field 'a b'; allowed: schema_version, name"),
        (b'"\\u001b[31m" = 1\n' + SMALL.encode(), "unknown field '\\x1b[31m'; allowed: schema_version, name"),
    ],
    ids=["no text", "long number", "nested", "hexadecimal", "hexadecimal text", "line break", "escape sequence"],
)
def test_strange_bytes(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "strange.toml"
    file.write_bytes(content)
    assert refusal(["check", str(file)]).startswith(f"{file}: {message}")


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    assert refusal(["run", str(tmp_path / "none.toml")]) == f"{tmp_path}/none.toml: no such file"
    assert refusal(["check", str(tmp_path)]) == f"{tmp_path}: cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.updates", "--set: must read path=value, such as run.updates=500; got 'run.updates'"),
        ("=5", "--set: must read path=value, such as run.updates=500; got '=5'"),
        ("run.updates=many", "FILE: run.updates: must be a whole number, got 'many'"),
        ("run.updates=0", "FILE: run.updates: must be greater than or equal to 1, got 0"),
        ("run.update=5", "FILE: run: unknown field 'update' (did you mean 'updates'?); allowed: "),
        ("cluster.workers.3.count=2", "FILE: cannot set 'cluster.workers.3.count': '3' is not an index of a list of 1"),
        ("cluster.workers.x.count=2", "FILE: cannot set 'cluster.workers.x.count': 'x' is not an index of a list of 1"),
        ("cluster.workers.².count=2", "FILE: cannot set 'cluster.workers.².count': '²' is not an index of a list of 1"),
        ("run.updates.most=2", "FILE: cannot set 'run.updates.most': 'most' lies inside a plain value"),
        ("run..updates=2", "FILE: run: unknown field ''; allowed: "),
        ("policy.kind=asink", "FILE: policy: unknown policy 'asink' (did you mean 'async'?); allowed: "),
        ("seed=" + "9" * 5000, "FILE: seed: must be a whole number, got '99999"),
        ("seed=" + "[" * 3000, "FILE: seed: must be a whole number, got '[[[["),
    ],
)
def test_settings_that_cannot_be(setting: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    assert refusal(["check", str(file), "--set", setting]).startswith(message.replace("FILE", str(file)))


def test_a_seed_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    assert refusal(["run", str(file), "--seed", "-1"]) == f"{file}: seed: must be greater than or equal to 0, got -1"


def test_an_error_in_an_inherited_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("seed = \n")
    (tmp_path / "child.toml").write_text('extends = "base.toml"\n')
    said = refusal(["check", str(tmp_path / "child.toml")])
    assert said.startswith(f"{tmp_path}/base.toml: not valid TOML: ")


def test_a_module_that_is_not_python(tmp_path: Path) -> None:
    (tmp_path / "not_python_at_all.py").write_text("def (:\n")
    file = tmp_path / "own.toml"
    file.write_text(SMALL + '[policy]\nkind = "not_python_at_all:Policy"\n')
    assert refusal(["check", str(file)]).startswith(
        f"{file}: policy: cannot load 'not_python_at_all:Policy': SyntaxError: "
    )


def test_a_module_is_never_taken_from_another_folder(tmp_path: Path) -> None:
    """Two scenarios with a module of the same name beside each must not get each other's."""
    module = "from asyncsim.policies import Policy\nclass Mine(Policy):\n    kind: str = 'twin_module:Mine'\n"
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "twin_module.py").write_text(module)
        files.append(folder / "own.toml")
        files[-1].write_text(SMALL + '[policy]\nkind = "twin_module:Mine"\n')
    load(files[0])
    with pytest.raises(ScenarioError, match="another module of that name is in use already"):
        load(files[1])
    load(files[0])


def test_what_python_code_gives_is_checked_too() -> None:
    data = tomllib.loads(SMALL)
    with pytest.raises(ScenarioError, match=r"policy: a policy needs .*this object .object. lacks"):
        build({**data, "policy": object()})
    with pytest.raises(ScenarioError, match=r"cluster\.workers\[0\]\.service: must be a table such as"):
        build({**data, "cluster": {"workers": [{"service": 1.0}]}})


# --- mutations of what is valid -----------------------------------------------------------------------------------


def nested(depth: int, wrap: object) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value] if wrap is list else {"law": value}
    return value


MUTANTS = [
    *("", "x", "a\nb", "\0", "os:getcwd", "no_such_module:Thing", "~nobody/x.csv", "x" * 300 + ".csv", "loss < 1"),
    *(True, math.nan, math.inf, -math.inf, -1, 0, 1, 2, -0.5, 0.5, 1e308, 5e-324, 2**70, -(2**70), 10**400),
    *([], {}, [[]], [1], ["x"], {"law": "constant"}, {"kind": "sgd"}, {"law": []}, {"x": math.nan}),
    *(nested(60, list), nested(60, dict), datetime.date(2024, 1, 31), datetime.time(1, 2)),
]


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Return the path of every value inside a document, the document itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(*path, key), *places(item, (*path, key))]]


def mutate(document: dict, place: tuple, action: str, value: object) -> None:
    *parents, last = place
    inside: object = document
    for key in parents:
        inside = inside[key]
    if action == "delete":
        del inside[last]
    elif action == "add" and isinstance(inside, dict):
        inside[f"{last}_"] = copy.deepcopy(value)
    else:
        inside[last] = copy.deepcopy(value)


DOCUMENTS = [(path, tomllib.loads(path.read_text(encoding="utf-8"))) for path in VALID_FILES]
DOCUMENTS = [(path, document) for path, document in DOCUMENTS if "extends" not in document]


@st.composite
def mutated_documents(draw: st.DrawFn) -> tuple[Path, dict]:
    path, original = draw(st.sampled_from(DOCUMENTS))
    document = copy.deepcopy(original)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        everywhere = places(document)
        if everywhere:
            action = draw(st.sampled_from(["replace", "replace", "delete", "add"]))
            mutate(document, draw(st.sampled_from(everywhere)), action, draw(st.sampled_from(MUTANTS)))
    return path, document


@st.composite
def mutated_texts(draw: st.DrawFn) -> tuple[Path, str]:
    path = draw(st.sampled_from(VALID_FILES))
    text = path.read_text(encoding="utf-8")
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        length = draw(st.sampled_from([0, 0, 1, 1, 2, 5, 30]))
        # No digits: they would only make clusters large, which is no mistake.
        inserted = draw(st.text("=[]{}\"'.,#-_ \n\t\0\\ezABC", max_size=3))
        text = text[:place] + inserted + text[place + length :]
    return path, text


def many(count: int) -> settings:
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@many(1000)
@given(mutated_documents())
def test_a_mutated_document_is_a_scenario_or_one_line(mutant: tuple[Path, dict]) -> None:
    path, document = mutant
    try:
        lines = check_lines(build(document, name="mutant.toml", folder=path.parent), name="mutant.toml")
    except ScenarioError as error:
        lines = [str(error)]
    assert lines[0].startswith("mutant.toml: ")
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 1 or lines[0] == "mutant.toml: valid"


@pytest.mark.parametrize("wanted", ["refused", "valid"])
def test_mutations_reach_both_ends(wanted: str) -> None:
    """The property above is not held by refusing everything, nor by mutations that change nothing."""

    def outcome(mutant: tuple[Path, dict]) -> str:
        path, document = mutant
        try:
            Scenario.model_validate(document, context={"folder": str(path.parent)})
        except ValidationError:
            return "refused"
        return "valid" if document not in [original for _, original in DOCUMENTS] else "unchanged"

    find(mutated_documents(), lambda mutant: outcome(mutant) == wanted, settings=many(100))


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which mutants lie beside the data and modules that they name."""
    folder = tmp_path_factory.mktemp("copies")
    shutil.copytree(VALID, folder, dirs_exist_ok=True)
    shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)
    (folder / "own.py").rename(folder / "own_copy.py")  # a module of its own, not the one of another folder
    return folder


@many(200)
@given(mutant=mutated_texts())
def test_a_mutated_file_is_a_scenario_or_one_line(mutant: tuple[Path, str], copies: Path) -> None:
    file = copies / "mutant.toml"
    file.write_text(mutant[1].replace("own:", "own_copy:"), encoding="utf-8")
    result = CliRunner().invoke(main, ["check", str(file)])
    if result.exit_code == 0:
        assert result.stdout.startswith(f"{file}: valid\n")
        assert result.stderr == ""
    else:
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1

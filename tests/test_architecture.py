"""Imports run one way, public names are few, and nothing but streams.py makes random numbers."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import asyncsim

PACKAGE = Path(asyncsim.__file__).parent

#: Lower layers first; a module may import its own layer and those before it.
LAYERS = [
    ["allocator", "blocks", "checksums", "compiling", "completed", "spec", "streams", "columns", "documents", "theory"],
    ["executors"],
    ["trace", "rules", "checking", "windows", "stored", "computed", "durations", "sampler", "staleness_laws", "slots"],
    ["network", "mixing", "policies", "staleness", "noise", "estimates", "problems", "compressors"],
    ["methods", "certificate"],
    ["cluster"],
    ["scenario"],
    ["schema", "prediction", "schedule", "measure", "runs", "results"],
    ["sources", "replay"],
    ["calibration"],
    ["summary", "experiment", "export", "cost", "divergence"],
    ["tuning"],
    ["cells"],
    ["sweep", "compare"],
    ["figures", "maps", "plots", "saddle_plots", "share_plots", "pictures", "report"],
    ["cli"],
    ["__main__", "__init__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """Return the top-level part of the package that a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_parts(path: Path) -> set[str]:
    """Return the parts of the package that a file imports, anywhere in it, but for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "asyncsim":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asyncsim."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("asyncsim.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    me = part_of(path)
    assert me in LEVEL, f"{me} has no layer: give it one in LAYERS"
    upward = {name for name in imported_parts(path) if LEVEL[name] > LEVEL[me]}
    assert not upward, f"{path.name} (layer {LEVEL[me]}) imports {upward}"


def test_the_check_sees_an_upward_import(tmp_path: Path) -> None:
    file = tmp_path / "spec.py"
    file.write_text("def late():\n    from asyncsim.cli import main\n    return main\n")
    assert imported_parts(file) == {"cli"}
    assert LEVEL["cli"] > LEVEL["spec"]


def test_every_part_has_a_layer() -> None:
    parts = {part_of(path) for path in MODULES}
    assert parts == set(LEVEL)


def test_public_names() -> None:
    assert sorted(asyncsim.__all__) == [
        "Run",
        "Scenario",
        "ScenarioError",
        "Trace",
        "TraceError",
        "calibrate",
        "compare",
        "import_trace",
        "load",
        "open_run",
        "record",
        "replay",
        "run",
        "simulate",
    ]
    assert all(hasattr(asyncsim, name) for name in asyncsim.__all__)


def in_a_fresh_process(code: str) -> list[str]:
    """Return the words that code prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return done.stdout.split()


@pytest.mark.parametrize("start", ["import asyncsim", "import asyncsim.cli"])
def test_nothing_heavy_is_imported_before_it_is_asked_for(start: str) -> None:
    loaded = f"{start}, sys; print(*{{'numpy', 'pydantic'}} & set(sys.modules))"
    assert in_a_fresh_process(loaded) == []
    assert set(in_a_fresh_process(f"import asyncsim; asyncsim.load; {loaded}")) == {"numpy", "pydantic"}


@pytest.mark.parametrize("first", ["asyncsim.replay", "import_module('asyncsim.replay')", "asyncsim.experiment"])
def test_a_public_name_is_never_the_module_of_that_name(first: str) -> None:
    code = f"from importlib import import_module; import asyncsim; {first}; print(*map(type, [asyncsim.replay]))"
    assert in_a_fresh_process(code) == ["<class", "'function'>"]


def test_modules_are_there_too() -> None:
    assert in_a_fresh_process("import asyncsim; print(asyncsim.methods.base.__name__)") == ["asyncsim.methods.base"]


def test_what_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(AttributeError, match="module 'asyncsim' has no attribute 'nothing'"):
        _ = asyncsim.nothing
    assert set(asyncsim.__all__) <= set(dir(asyncsim))


GENERATORS = re.compile(
    r"default_rng|RandomState|np\.random|numpy\.random|^import random|from random|Generator\(", re.M
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_generators(path: Path) -> None:
    assert not GENERATORS.search(path.read_text(encoding="utf-8"))

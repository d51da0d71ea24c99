from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asyncsim import theory

FOLDER = Path(theory.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "theory.md"
EXCEPTIONS = {"lyapunov.py": {"streams", "compiling"}, "escape.py": {"streams"}}  # the files that need random numbers


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_theory_stands_alone(path):
    allowed = EXCEPTIONS.get(path.name, set())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asyncsim"):
            if node.module == "asyncsim":
                assert {alias.name for alias in node.names} <= allowed
            else:
                within = node.module.removeprefix("asyncsim.")
                assert within.startswith("theory.") or within in allowed


def test_importing_theory_is_light():
    heavy = ("scipy", "numba", "pandas", "pyarrow")
    code = f"import sys, asyncsim.theory; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_page_names_every_public_name_and_no_other():
    named = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", PAGE.read_text(encoding="utf-8")))
    assert set(theory.__all__) <= named
    assert all(hasattr(theory, name) for name in theory.__all__)
    assert not {name for name in named if "_" in name and not hasattr(theory, name)}

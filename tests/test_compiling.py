"""Compiled code is kept also where the package and the user have no folder to write to, and never trusted to others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import asyncsim
from asyncsim import compiling

CALL = """
import json
import numpy
import numba
from asyncsim.slots import plan_slots
slots = plan_slots(numpy.zeros(3, dtype=numpy.int64), numpy.arange(3).reshape(1, 3), 1)[2]
hits = sum(plan_slots.stats.cache_hits.values())
print(json.dumps([slots, hits, numba.config.CACHE_DIR]))
"""


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package that nobody can write compiled code to, root neither: a file is in the folder's place."""
    folder = tmp_path_factory.mktemp("install")
    shutil.copytree(Path(asyncsim.__file__).parent, folder / "asyncsim", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [folder / "asyncsim", *(folder / "asyncsim").iterdir()]:
        if path.is_dir():
            (path / "__pycache__").touch()
    return folder


def call(install: Path, temporary: Path, **more: str) -> list[object]:
    """Call a compiled function in a process without a home; return its result, cache hits, and the folder chosen."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.devnull, "TMPDIR": str(temporary), **more}
    environment["PYTHONPATH"] = os.pathsep.join([str(install), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, "-c", CALL], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_read_only_install_compiles_once(install: Path, tmp_path: Path) -> None:
    folder = tmp_path / f"asyncsim-compiled-{os.getuid()}"
    assert call(install, tmp_path) == [1, 0, str(folder)]
    assert call(install, tmp_path) == [1, 1, str(folder)]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_the_user_s_choice_comes_first(install: Path, tmp_path: Path) -> None:
    chosen = str(tmp_path / "chosen")
    assert call(install, tmp_path, NUMBA_CACHE_DIR=chosen) == [1, 0, chosen]
    assert call(install, tmp_path, NUMBA_CACHE_DIR=chosen) == [1, 1, chosen]
    assert [path.name for path in tmp_path.iterdir()] == ["chosen"]


def test_where_nothing_can_be_written_it_compiles_all_the_same(install: Path, tmp_path: Path) -> None:
    (tmp_path / f"asyncsim-compiled-{os.getuid()}").touch()
    for _ in range(2):
        assert call(install, tmp_path) == [1, 0, ""]


#: What may lie where the folder should be, put there by someone else: what is in it would be run.
PLANTED: dict[str, Callable[[Path], object]] = {
    "a file": Path.touch,
    "a link": lambda path: path.symlink_to(path.parent / "elsewhere"),
    "a folder all may write to": lambda path: (path.mkdir(), path.chmod(0o777)),
    "a folder the group may write to": lambda path: (path.mkdir(), path.chmod(0o770)),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_a_folder_that_others_may_have_filled_is_not_used(
    plant: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    folder = compiling._temporary_folder()
    assert folder is not None
    assert folder == compiling._temporary_folder()
    folder.rmdir()
    plant(folder)
    assert compiling._temporary_folder() is None


def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    assert compiling._temporary_folder() is None  # it has made the folder as me
    assert [path.name for path in tmp_path.iterdir()] == [f"asyncsim-compiled-{me + 1}"]

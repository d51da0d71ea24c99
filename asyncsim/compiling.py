"""numba's `njit`, and where compiled code is kept between processes. Imports numba: import it inside functions.

numba keeps compiled code in the first folder that it can write to: NUMBA_CACHE_DIR, the `__pycache__` beside the
source, the user's own cache. Where it finds none (installed read-only, no home) it would refuse to load the function.
We then give it a folder among the temporary files; where that cannot be had either, every process compiles anew.
"""

from __future__ import annotations

import os
import stat
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numba


def _finds_a_folder() -> bool:
    """Say whether numba can keep compiled code: it looks for a folder as soon as a function is decorated."""
    try:
        numba.njit(cache=True)(_finds_a_folder)
    except RuntimeError:
        return False
    return True


def _temporary_folder() -> Path | None:
    """Return a folder that nobody but this user can write to, for what lies in it is run; None if it cannot be had."""
    if not hasattr(os, "getuid"):
        return None
    try:
        folder = Path(tempfile.gettempdir(), f"asyncsim-compiled-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()  # not what a link points to
    except OSError:
        return None
    others_may = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not others_may else None


def _prepare_cache() -> bool:
    """Have numba find a folder, if only among the temporary files; say whether it does."""
    if _finds_a_folder():
        return True
    folder = _temporary_folder()
    if folder is None:
        return False
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    if _finds_a_folder():
        return True
    config.CACHE_DIR = before
    return False


#: ``@njit``, or ``@njit(signature)``, as everything of ours is compiled.
njit: Any = partial(numba.njit, cache=_prepare_cache())

"""What tests see of the machine: folders of their own and a fixed environment, not the user's.

The whole session gets the environment before any test module is imported, and each test a working
folder and a home of its own. Processes that tests start inherit both.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Programs, temporary files, libraries and devices; NGINX names the binary that a test starts.
KEPT = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "NGINX", "PYTEST_VERSION", "PYTEST_CURRENT_TEST")
KEPT_PREFIXES = ("CUDA_", "NVIDIA_")
FIXED = {
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "COLUMNS": "80",
    "OMP_NUM_THREADS": "1",  # equal bits whatever the machine, and two suites share its cores
    "GIT_CONFIG_NOSYSTEM": "1",
    "PIP_CONFIG_FILE": os.devnull,
}
UMASK = 0o022


def clean_environment(environment: Mapping[str, str], base: Path) -> dict[str, str]:
    """Return the environment of a test session whose folders lie in `base`."""
    kept = {k: v for k, v in environment.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
    if "TMPDIR" in kept:
        kept["TMPDIR"] = os.path.abspath(kept["TMPDIR"])
    # Git looks for a repository in the folders above; temporary files may lie in a checkout.
    return {**kept, **FIXED, "HOME": str(base), "GIT_CEILING_DIRECTORIES": str(base.parent)}


def enter_session() -> Path:
    """Give this process a clean environment; return the folder that `leave_session` removes."""
    base = Path(tempfile.mkdtemp(prefix="fedfactory-tests-")).resolve()
    clean = clean_environment(os.environ, base)
    os.environ.clear()
    os.environ.update(clean)
    time.tzset()
    tempfile.tempdir = None  # read TMPDIR again
    os.umask(UMASK)
    return base


def leave_session(base: Path) -> None:
    os.chdir(base.parent)
    shutil.rmtree(base, ignore_errors=True)


@contextmanager
def own_place(base: Path) -> Iterator[Path]:
    """Work in an empty folder with an empty home; undo on leaving what changed the environment."""
    before, outside = dict(os.environ), os.getcwd()
    place = Path(tempfile.mkdtemp(dir=base))
    home, work = place / "home", place / "work"
    home.mkdir()
    work.mkdir()
    os.environ["HOME"] = str(home)
    os.chdir(work)
    try:
        yield work
    finally:
        os.chdir(outside)
        for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
            del os.environ[name]
        os.environ.update({k: v for k, v in before.items() if k != "PYTEST_CURRENT_TEST"})
        shutil.rmtree(place, ignore_errors=True)

"""The wheel: it carries the configuration and the code, and works away from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel offline, from a copy: a build writes into its source folder."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():  # a file may be listed and already gone
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--wheel-dir", str(out), str(source)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    (built,) = out.glob("fedfactory-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_it_holds_every_yaml_and_every_module(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    yamls = {f"fedfactory/conf/{p.relative_to(ROOT / 'conf')}" for p in ROOT.glob("conf/**/*.yaml")}
    modules = {
        str(path.relative_to(ROOT))
        for top in ("fedfactory", "strategies", "site_agents")
        for path in (ROOT / top).rglob("*.py")
    }
    assert len(yamls) > 20
    assert yamls | modules | {"fedfactory/conf/__init__.py"} <= held
    assert not [name for name in held if name.startswith(("tests/", "bench/", "conf/"))]


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("fedfactory", "strategies", "site_agents")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert found | {"fedfactory.conf"} == set(listed)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("fedfactory.cli.main", ["local", "--cfg", "job", "partition=labels"]),
        ("site_agents.cli.main", ["sites", "--json"]),
    ],
)
def test_it_works_away_from_the_repository(installed: Path, tmp_path: Path, module, words):
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main({words!r}))"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert yaml.safe_load(shown)  # YAML reads JSON too
    where = subprocess.run(
        [sys.executable, "-c", f"import fedfactory.conf, {module} as m; print(m.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(installed))


def test_the_commands_are_declared(installed: Path):
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    text = entry_points.read_text()
    assert "fedfactory = fedfactory.cli.main:main" in text
    assert "site-agent = site_agents.cli.main:main" in text

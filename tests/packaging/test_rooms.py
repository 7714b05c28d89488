"""Which parts of Flower each room may import. import-linter sees packages, not their parts."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = ("flwr.app", "flwr.serverapp", "flwr.serverapp.strategy")
SEAMS = {"fedfactory/coordinator/flower_seam.py"}


def flower_imports(source: str) -> Iterator[str]:
    """Yield every module of Flower that a source file imports, also inside its functions."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        yield from (name for name in names if name.split(".")[0] == "flwr")


def private(path: str, source: str) -> list[str]:
    if path in SEAMS:
        return []
    return [name for name in flower_imports(source) if name not in PUBLIC]


def sources() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for top in ("fedfactory", "strategies", "site_agents")
        for path in (ROOT / top).rglob("*.py")
    }


def test_only_the_seams_import_what_is_private_of_flower():
    found = {path: names for path, text in sources().items() if (names := private(path, text))}
    assert found == {}


def test_the_seams_are_there_and_needed():
    code = sources()
    for seam in SEAMS:
        assert any(name not in PUBLIC for name in flower_imports(code[seam]))


def test_a_private_import_is_found_wherever_it_stands():
    assert private("fedfactory/coordinator/x.py", "import flwr.common") == ["flwr.common"]
    inside = "def f():\n    from flwr.proto.run_pb2 import Run\n"
    assert private("fedfactory/coordinator/x.py", inside) == ["flwr.proto.run_pb2"]
    assert private("fedfactory/coordinator/x.py", "from flwr.app import Message") == []


CLOCK = """from datetime import UTC, date, datetime

NOW = (datetime.now(UTC), date.today())
LATER = datetime.fromtimestamp(1.0, UTC)
"""


@pytest.mark.parametrize(
    ("room", "found"),
    [
        ("fedfactory/contracts", 2),
        ("fedfactory/privacy", 2),
        ("fedfactory/rounds", 2),
        ("site_agents/jobs", 2),
        ("site_agents/policy", 2),
        ("fedfactory/operator", 0),
    ],
)
def test_a_pure_room_has_times_and_reads_no_clock(room, found):
    words = (sys.executable, "-m", "ruff", "check", "--select=TID251", "--output-format=concise")
    told = subprocess.run(
        [*words, f"--stdin-filename={room}/x.py", "-"],
        input=CLOCK, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.stdout.count("TID251") == found, told.stdout + told.stderr

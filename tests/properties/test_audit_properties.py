"""Whatever is done to the chain's file without its key, `audit verify` finds it and says where."""

from __future__ import annotations

import base64
import json
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fedfactory.contracts.errors import IntegrityError
from site_agents.audit import AuditChain
from site_agents.audit.export import Scope, write_export
from site_agents.audit.reading import verify

COUNT = 6
SCRIPT = Path(__file__).parents[2] / "docs" / "verify_audit.py"
AT = "2026-11-21T08:00:00.000+00:00"

several = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "audit"
    AuditChain.create(folder)
    opened = AuditChain.open(folder)
    for n in range(COUNT):
        opened.append({"event": "released", "run": f"r{n % 2}", "metrics": {"loss": n / 7}, "n": n})
    opened.close()
    return folder


@pytest.fixture
def copy(chain: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(chain, tmp_path / "audit")
    yield tmp_path / "audit"
    assert verify(chain).notice is None


def _written(chain: Path) -> list[bytes]:
    return (chain / "chain.jsonl").read_bytes().splitlines(keepends=True)


def _found(folder: Path, raw: bytes) -> str:
    """Return what verify says of a chain file with these bytes; it must not hold."""
    (folder / "chain.jsonl").write_bytes(raw)
    with pytest.raises(IntegrityError) as caught:
        verify(folder)
    return str(caught.value)


def _lines_named(message: str) -> list[int]:
    return [int(number) for number in re.findall(r"lines? (\d+)", message)]


@several
@given(data=st.data())
def test_any_byte_changed_is_found_in_its_line(
    chain: Path, copy: Path, data: st.DataObject
) -> None:
    lines = _written(chain)
    raw = bytearray(b"".join(lines))
    place = data.draw(st.integers(0, len(raw) - 1), label="place")
    raw[place] ^= data.draw(st.integers(1, 255), label="flip")
    line = next(n for n in range(1, COUNT + 1) if place < sum(map(len, lines[:n])))
    assert _lines_named(_found(copy, bytes(raw)))[0] == line


@several
@given(first=st.integers(0, COUNT - 1), count=st.integers(1, COUNT))
def test_any_lines_deleted_are_found_where_they_were(
    chain: Path, copy: Path, first: int, count: int
) -> None:
    lines = _written(chain)
    del lines[first : first + count]
    assert _lines_named(_found(copy, b"".join(lines)))[0] == first + 1


@several
@given(order=st.permutations(range(COUNT)))
def test_any_other_order_is_found_at_its_first_line(
    chain: Path, copy: Path, order: list[int]
) -> None:
    assume(order != sorted(order))
    lines = _written(chain)
    first = next(n for n in range(COUNT) if order[n] != n)
    named = _lines_named(_found(copy, b"".join(lines[n] for n in order)))
    assert named[0] == first + 1


@several
@given(data=st.data())
def test_any_truncation_is_found_at_its_line(chain: Path, copy: Path, data: st.DataObject) -> None:
    lines = _written(chain)
    raw = b"".join(lines)
    left = data.draw(st.integers(0, len(raw) - 1), label="bytes left")
    whole = sum(1 for n in range(1, COUNT + 1) if sum(map(len, lines[:n])) <= left)
    assert _lines_named(_found(copy, raw[:left]))[0] == whole + 1


@several
@given(data=st.data())
def test_any_bytes_put_in_are_found(chain: Path, copy: Path, data: st.DataObject) -> None:
    raw = b"".join(_written(chain))
    place = data.draw(st.integers(0, len(raw) - 1), label="place")
    extra = data.draw(st.binary(min_size=1, max_size=40) | st.sampled_from(_written(chain)))
    changed = raw[:place] + extra + raw[place:]
    assume(not changed.startswith(raw))  # what follows the end: the next test
    _found(copy, changed)


@several
@given(extra=st.binary(min_size=1, max_size=40))
def test_bytes_after_the_end_are_found_or_told(chain: Path, copy: Path, extra: bytes) -> None:
    raw = b"".join(_written(chain)) + extra
    if b"\n" in extra:
        assert _lines_named(_found(copy, raw))[0] == COUNT + 1
        return
    (copy / "chain.jsonl").write_bytes(raw)  # as a crash leaves it: nothing acknowledged changed
    assert (
        verify(copy).notice
        == f"{len(extra)} bytes of a line that was never finished follow the last line"
    )


@several
@given(data=st.data())
def test_any_byte_changed_in_the_head_file_is_found_or_told(
    chain: Path, copy: Path, data: st.DataObject
) -> None:
    raw = bytearray((chain / "head.json").read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1), label="place")
    raw[place] ^= data.draw(st.integers(1, 255), label="flip")
    (copy / "head.json").write_bytes(raw)
    try:
        found = verify(copy)
    except IntegrityError:
        return
    assert found.notice is not None
    assert found.trail.length == COUNT


# ---- exports -------------------------------------------------------------------------------------


def _accepts(monkeypatch: pytest.MonkeyPatch, export: Path, key: Path) -> bool:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["verify_audit.py", str(export), str(key)])
        patched.setattr(sys, "excepthook", sys.excepthook)
        try:
            runpy.run_path(str(SCRIPT))
        except (Exception, SystemExit):  # noqa: BLE001
            return False
    return True


@several
@given(data=st.data(), scope=st.sampled_from([None, "r1"]))
def test_any_byte_changed_in_an_export_is_found(
    chain: Path,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: st.DataObject,
    scope: str | None,
) -> None:
    export = copy / "export.jsonl"
    export.unlink(missing_ok=True)
    write_export(chain, export, Scope(since="", run=scope, withhold=frozenset({"n"})), AT)
    assert _accepts(monkeypatch, export, chain / "audit.pub")
    good = export.read_bytes()
    raw = bytearray(good)
    place = data.draw(st.integers(0, len(raw) - 1), label="place")
    raw[place] ^= data.draw(st.integers(1, 255), label="flip")
    export.write_bytes(raw)
    if _accepts(monkeypatch, export, chain / "audit.pub"):
        assert _said(bytes(raw)) == _said(good)


def _said(export: bytes) -> tuple[list[bytes], dict[str, object], bytes]:
    """Return what an export says; base64 and JSON have more than one way to write a last line."""
    *lines, last = export.splitlines(keepends=True)
    end = json.loads(last)
    return lines, end, base64.b64decode(end.pop("signature"))

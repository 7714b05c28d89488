"""The second place for anchors: what is written there is read back, and failing is said."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedfactory.contracts.errors import EnvironmentFailedError, IntegrityError
from fedfactory.contracts.plans import Anchor
from site_agents import second_place
from site_agents.second_place import SYSLOG, SecondPlace
from tests.patience import HANG_S

ANCHOR = Anchor(
    site="lumi",
    ledger="0f3a",
    ledger_sequence=7,
    ledger_head="sha256:" + "1" * 64,
    audit_length=9,
    audit_head="sha256:" + "2" * 64,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "anchors").touch()
    return tmp_path / "anchors"


def test_without_a_second_place_nothing_is_kept() -> None:
    place = SecondPlace(None)
    place.record(ANCHOR)
    assert place.last() is None


def test_a_file_holds_every_anchor_and_the_last_is_read_back(path: Path) -> None:
    assert SecondPlace(path).last() is None
    for length in range(9, 300):
        SecondPlace(path).record(replace(ANCHOR, audit_length=length))
    assert SecondPlace(path).last() == replace(ANCHOR, audit_length=299)
    assert len(path.read_text().splitlines()) == 291


def test_a_torn_last_line_is_passed_over_and_the_next_starts_anew(path: Path) -> None:
    SecondPlace(path).record(ANCHOR)
    with path.open("a") as file:
        file.write('{"audit_head":"sha256:22')  # the machine lost power here
    assert SecondPlace(path).last() == ANCHOR
    later = replace(ANCHOR, audit_length=10)
    SecondPlace(path).record(later)
    assert SecondPlace(path).last() == later


def test_an_altered_last_line_is_said(path: Path) -> None:
    SecondPlace(path).record(ANCHOR)
    path.write_text(path.read_text().replace("audit_length", "audit_lenght"))
    with pytest.raises(IntegrityError, match="no anchor"):
        SecondPlace(path).last()


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    # A file system that is not mounted would look like a site without a past.
    place = SecondPlace(tmp_path / "anchors")
    for act in (place.last, lambda: place.record(ANCHOR)):
        with pytest.raises(EnvironmentFailedError, match="mount its file system"):
            act()
    assert not (tmp_path / "anchors").exists()


def test_a_full_disk_is_said() -> None:
    with pytest.raises(EnvironmentFailedError, match="No space left"):
        SecondPlace(Path("/dev/full")).record(ANCHOR)


def test_the_systems_log_gets_every_anchor() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind("log")
        log.settimeout(HANG_S)
        place = SecondPlace(SYSLOG, syslog_socket="log")
        place.record(ANCHOR)
        text = log.recv(65536).decode()
    assert text.startswith("<86>fedfactory: anchor {")
    assert ANCHOR.audit_head in text
    assert place.last() is None  # a person compares


def test_a_log_that_does_not_listen_is_said() -> None:
    place = SecondPlace(SYSLOG, syslog_socket="log")
    with pytest.raises(EnvironmentFailedError, match="cannot be written"):
        place.record(ANCHOR)


def test_a_log_that_hangs_is_not_waited_for(monkeypatch: Any) -> None:
    monkeypatch.setattr(second_place, "_LOG_TIMEOUT_S", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind("log")  # and never reads
        place = SecondPlace(SYSLOG, syslog_socket="log")
        with pytest.raises(EnvironmentFailedError, match="cannot be written: timed out"):
            _fill(place)


def _fill(place: SecondPlace) -> None:
    for _ in range(10_000):
        place.record(ANCHOR)

"""The audit chain: durable, recovered after a crash, closed to whatever else wrote there."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    IntegrityError,
    UsageError,
)
from site_agents.audit import AuditChain
from site_agents.audit.entries import administrative
from site_agents.audit.line import Line
from site_agents.audit.reading import Found, read, verify
from tests.patience import HANG_S

COUNT = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    AuditChain.create(tmp_path / "audit")
    return tmp_path / "audit"


@pytest.fixture
def filled(folder: Path) -> Iterator[Path]:
    """A chain of COUNT entries; whatever a test did to it, it must verify again at the end."""
    with _chain(folder) as chain:
        for n in range(1, COUNT + 1):
            chain.append({"event": "test", "n": n})
    yield folder
    verify(folder)


class _chain:  # noqa: N801
    def __init__(self, folder: Path) -> None:
        self.chain = AuditChain.open(folder)

    def __enter__(self) -> AuditChain:
        return self.chain

    def __exit__(self, *_: object) -> None:
        self.chain.close()


def _entries(folder: Path) -> list[dict[str, object]]:
    lines: list[Line] = []
    read(folder, lines.append)
    return [line.fields() for line in lines]


def _length(found: Found) -> int:
    return found.trail.length


def test_an_empty_chain_holds_and_names_its_key(folder: Path, tmp_path: Path) -> None:
    AuditChain.create(tmp_path / "other")
    assert _length(verify(folder)) == 0
    assert verify(folder).trail.head != verify(tmp_path / "other").trail.head


def test_keys_are_the_agents_alone(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("audit.key", "chain.jsonl", "head.json"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600, name


def test_a_chain_is_made_once(filled: Path) -> None:
    with pytest.raises(UsageError, match="made once"):
        AuditChain.create(filled)
    assert not list(filled.parent.glob(".audit.*"))


def test_a_chain_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="missing"):
        AuditChain.open(tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("name", ["chain.jsonl", "head.json", "audit.key", "audit.pub"])
def test_a_missing_file_is_named(filled: Path, name: str) -> None:
    aside = filled.parent / name
    shutil.move(filled / name, aside)
    with pytest.raises(IntegrityError, match=name):
        AuditChain.open(filled)
    shutil.move(aside, filled / name)


def test_heads_are_remembered_and_survive_reopening(folder: Path) -> None:
    with _chain(folder) as chain:
        heads = [chain.head]
        for n in range(3):
            chain.append({"event": "test", "n": n})
            heads.append(chain.head)
        assert [chain.head_at(n) for n in range(5)] == [*heads, None]
    with _chain(folder) as chain:
        assert (chain.length, chain.head) == (3, heads[3])
        assert [chain.head_at(n) for n in range(4)] == heads
        assert chain.head_at(-1) is None


def test_what_was_appended_is_read_back(folder: Path) -> None:
    entry = {"event": "released", "metrics": {"loss": 0.25}, "run": 'r"1\n', "who": "é", "no": None}
    with _chain(folder) as chain:
        chain.append(entry)
    assert _entries(folder) == [entry]


def test_a_checkpoint_is_signed_and_says_where_the_chain_stands(filled: Path) -> None:
    with _chain(filled) as chain:
        checkpoint = chain.checkpoint()
        assert (checkpoint.length, checkpoint.head) == (COUNT, chain.head)


def test_a_value_that_has_no_json_form_is_not_appended(filled: Path) -> None:
    with _chain(filled) as chain:
        with pytest.raises(ValueError, match="JSON"):
            chain.append({"event": "test", "loss": float("nan")})
        chain.append({"event": "test", "n": 6})
    assert _length(verify(filled)) == 6


def test_after_closing_nothing_is_appended(filled: Path) -> None:
    with _chain(filled) as chain:
        pass
    with pytest.raises(IntegrityError, match="closed it"):
        chain.append({"event": "test"})
    assert _length(verify(filled)) == COUNT


def test_threads_may_append_side_by_side(folder: Path) -> None:
    with _chain(folder) as chain:

        def work(name: int) -> None:
            for n in range(20):
                chain.append({"event": "test", "thread": name, "n": n})

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert chain.length == 80
    found = _entries(folder)
    for name in range(4):
        assert [e["n"] for e in found if e["thread"] == name] == list(range(20))


def test_two_processes_may_append_side_by_side(folder: Path) -> None:
    with _chain(folder) as mine:
        other = _appender(folder, 30)
        for n in range(30):
            mine.append({"event": "test", "n": n})
        assert other.wait(HANG_S) == 0
        assert other.stdout is not None
        other.stdout.close()
        mine.append({"event": "last"})
        assert mine.length == 61
    assert _length(verify(folder)) == 61


def test_refreshing_follows_what_another_process_wrote(folder: Path) -> None:
    with _chain(folder) as mine, _chain(folder) as other:
        other.append({"event": "test"})
        assert mine.length == 0
        mine.refresh()
        assert (mine.length, mine.head) == (1, other.head)


# ---- crashes -------------------------------------------------------------------------------------

_APPEND = """
import sys
from pathlib import Path
from site_agents.audit import AuditChain
chain = AuditChain.open(Path(sys.argv[1]))
for n in range(int(sys.argv[2])):
    chain.append({"event": "test", "n": n})
    print(chain.length, chain.head, flush=True)
chain.close()
"""


def _appender(folder: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _APPEND, str(folder), str(count)], stdout=subprocess.PIPE, text=True
    )


def test_kill_9_loses_no_entry_that_was_acknowledged(folder: Path) -> None:
    rng = random.Random(3)
    for _ in range(4):
        with _appender(folder, 100_000) as child:
            assert child.stdout is not None
            told = [child.stdout.readline() for _ in range(rng.randrange(1, 60))]
            child.send_signal(signal.SIGKILL)
            told += child.stdout.readlines()
        length, head = [line for line in told if line.endswith("\n")][-1].split()
        found = verify(folder)
        assert found.trail.head_at(int(length)) == head
        with _chain(folder) as chain:
            assert chain.head_at(int(length)) == head
            chain.append({"event": "after"})


def _with_line_6(folder: Path) -> tuple[bytes, bytes, bytes, bytes]:
    """Append a line; return chain and head file as they were before, and as they are after."""
    chain, head = folder / "chain.jsonl", folder / "head.json"
    before = chain.read_bytes(), head.read_bytes()
    with _chain(folder) as open_chain:
        open_chain.append({"event": "test", "n": 6})
    return *before, chain.read_bytes(), head.read_bytes()


def test_bytes_of_an_unfinished_line_are_cut_off_and_that_is_recorded(filled: Path) -> None:
    chain, head, chain_6, _ = _with_line_6(filled)
    for cut in (*range(len(chain) + 1, len(chain_6), 11), len(chain_6) - 1):
        (filled / "chain.jsonl").write_bytes(chain_6[:cut])
        (filled / "head.json").write_bytes(head)
        assert "never finished" in str(verify(filled).notice)
        with _chain(filled) as opened:
            assert opened.length == COUNT + 1
        assert (filled / "chain.jsonl").read_bytes()[: len(chain)] == chain
        last = _entries(filled)[-1]
        assert (last["event"], last["line"]) == ("recovered", COUNT)
        assert verify(filled).notice is None


def test_a_whole_line_that_was_not_acknowledged_is_kept_and_that_is_recorded(filled: Path) -> None:
    _, head, chain_6, head_6 = _with_line_6(filled)
    # The checkpoint of line 6 overwrites that of line 4, in the first 512 bytes: torn there.
    slot = len(head) // 2
    for torn in (*range(0, slot, 7), slot):
        (filled / "chain.jsonl").write_bytes(chain_6)
        (filled / "head.json").write_bytes(head_6[:torn] + head[torn:])
        standing = verify(filled)
        assert standing.trail.length == COUNT + 1
        with _chain(filled) as opened:
            kept = opened.length
        entries = _entries(filled)
        assert entries[COUNT] == {"event": "test", "n": 6}
        # Until its last differing byte is written, the checkpoint is not whole.
        assert [e["event"] for e in entries[6:]] == (["recovered"] if standing.notice else [])
        assert kept == len(entries)


def test_a_crash_elsewhere_is_followed_by_an_agent_that_runs(filled: Path) -> None:
    with _chain(filled) as running:
        _, _, chain_6, _ = _with_line_6(filled)
        with (filled / "chain.jsonl").open("ab") as file:
            file.write(chain_6[-300:-1])  # another process died in its append
        running.append({"event": "test", "n": 7})
        assert running.length == 8
    assert [e["event"] for e in _entries(filled)[6:]] == ["recovered", "test"]


def test_a_full_disk_leaves_the_chain_as_it_was(filled: Path) -> None:
    size = (filled / "chain.jsonl").stat().st_size
    child = subprocess.run(
        [sys.executable, "-c", _APPEND, str(filled), "1"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100)),
    )
    assert "cannot be written" in child.stderr
    assert "EnvironmentFailedError" in child.stderr
    assert (filled / "chain.jsonl").stat().st_size == size
    assert verify(filled).notice is None


# ---- what is no crash ----------------------------------------------------------------------------


def _refused(folder: Path, word: str) -> None:
    """Opening says so; an agent that runs says so and writes no more."""
    with pytest.raises(IntegrityError, match=word):
        AuditChain.open(folder)
    with pytest.raises(IntegrityError, match=word):
        verify(folder)


@pytest.fixture
def altered(filled: Path) -> Iterator[Path]:
    """A copy of the filled chain, to be altered."""
    copy = filled.parent / "copy"
    shutil.copytree(filled, copy)
    yield copy
    shutil.rmtree(copy)


def _lines(folder: Path) -> list[bytes]:
    return (folder / "chain.jsonl").read_bytes().splitlines(keepends=True)


def test_a_deleted_line_is_named(altered: Path) -> None:
    lines = _lines(altered)
    (altered / "chain.jsonl").write_bytes(b"".join(lines[:1] + lines[3:]))
    _refused(altered, r"line 2 is entry 4: entries 2 to 3 are missing")


def test_swapped_lines_are_named(altered: Path) -> None:
    lines = _lines(altered)
    lines[2], lines[3] = lines[3], lines[2]
    (altered / "chain.jsonl").write_bytes(b"".join(lines))
    _refused(altered, r"line 3 is entry 4: entry 3 is missing here")


def test_a_repeated_line_is_named(altered: Path) -> None:
    lines = _lines(altered)
    (altered / "chain.jsonl").write_bytes(b"".join([*lines, lines[-1]]))
    _refused(altered, r"line 6 is entry 5 again")


@pytest.mark.parametrize("left", range(COUNT))
def test_a_cut_off_end_is_named(altered: Path, left: int) -> None:
    (altered / "chain.jsonl").write_bytes(b"".join(_lines(altered)[:left]))
    which = f"line {COUNT} is" if left == COUNT - 1 else f"lines {left + 1} to {COUNT} are"
    _refused(altered, f"{which} missing or cut short")


def test_an_edited_entry_is_named_even_if_its_commitments_are_made_anew(altered: Path) -> None:
    # All hashes can be computed without the key: what cannot is the signature.
    from site_agents.audit.line import write_line
    from site_agents.audit.statements import make_key, start_of

    (forge := altered.parent / "forge").mkdir()
    key = make_key(forge)
    lines = _lines(altered)
    first = json.loads(lines[0])
    raw, _ = write_line(
        {"event": "test", "n": 100},
        index=5,
        at=first["at"],
        previous=json.loads(lines[4])["previous"],
        salt=os.urandom(32),
        key=key,
    )
    (altered / "chain.jsonl").write_bytes(b"".join([*lines[:4], raw]))
    _refused(altered, r"line 5 (or one before|was altered).* not what the audit key signed")
    assert start_of(key.public_key()) != first["previous"]


def test_a_line_added_by_another_key_is_no_crash(altered: Path) -> None:
    from site_agents.audit.line import write_line
    from site_agents.audit.statements import make_key

    (forge := altered.parent / "forge").mkdir()
    with _chain(altered) as chain:
        head = chain.head
    raw, _ = write_line(
        administrative("approved", actor="nobody"),
        index=6,
        at="2026-11-21T07:00:00.000+00:00",
        previous=head,
        salt=os.urandom(32),
        key=make_key(forge),
    )
    with (altered / "chain.jsonl").open("ab") as file:
        file.write(raw)
    _refused(altered, "line 6 was altered: it is not what the audit key signed")


def test_another_sites_key_does_not_open_the_chain(altered: Path) -> None:
    AuditChain.create(altered.parent / "other")
    for name in ("audit.key", "audit.pub"):
        shutil.copy(altered.parent / "other" / name, altered / name)
    with pytest.raises(IntegrityError):
        AuditChain.open(altered)
    with pytest.raises(IntegrityError):
        verify(altered)


def test_a_public_key_that_is_not_the_keys_is_named(altered: Path) -> None:
    AuditChain.create(altered.parent / "other")
    shutil.copy(altered.parent / "other" / "audit.pub", altered / "audit.pub")
    with pytest.raises(IntegrityError, match="one of the two was replaced"):
        AuditChain.open(altered)


@pytest.mark.parametrize("harm", ["cut", "longer", "replaced", "older head"])
def test_an_agent_that_runs_notices_and_writes_no_more(altered: Path, harm: str) -> None:
    path = altered / ("head.json" if harm == "older head" else "chain.jsonl")
    older = path.read_bytes()
    with _chain(altered) as chain:
        for n in (6, 7):
            chain.append({"event": "test", "n": n})
        raw = path.read_bytes()
        if harm == "replaced":
            path.unlink()
        path.write_bytes(
            {"cut": raw[:-1], "longer": raw + b"{}\n", "replaced": raw, "older head": older}[harm]
        )
        with pytest.raises(IntegrityError):
            chain.append({"event": "test"})
        path.write_bytes(raw)
        with pytest.raises(IntegrityError, match="closed to writing"):
            chain.append({"event": "test"})


def test_a_damaged_newest_checkpoint_hides_nothing_and_is_recorded(altered: Path) -> None:
    raw = (altered / "head.json").read_bytes()
    (altered / "head.json").write_bytes(raw[:-9] + b"x" + raw[-8:])
    with _chain(altered) as chain:
        assert chain.length == COUNT + 1
    assert _entries(altered)[-1]["event"] == "recovered"


def test_a_damaged_older_checkpoint_is_named(altered: Path) -> None:
    raw = (altered / "head.json").read_bytes()
    (altered / "head.json").write_bytes(b"x" + raw[1:])
    _refused(altered, "head.json was altered")


def test_no_room_for_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailedError, match="no audit chain could be made"):
        AuditChain.create(tmp_path / "file" / "audit")

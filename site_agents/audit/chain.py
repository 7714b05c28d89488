"""The audit chain: entries appended one by one, each durable and signed before `append` returns.

Files (folder 0700): chain.jsonl (lines), head.json (how long it must be), audit.key, audit.pub.
Processes of one site may append side by side (the agent, and a person's `site-agent approve`): each
append takes a lock on the file and first follows what others wrote.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from fedfactory.contracts.errors import EnvironmentFailedError, IntegrityError, UsageError
from fedfactory.durable_file import create_durably, sync_folder
from site_agents.audit.entries import recovered
from site_agents.audit.head_file import (
    HEAD,
    Heads,
    first_heads,
    parse_heads,
    read_heads,
    write_head,
)
from site_agents.audit.leaf import SALT_BYTES
from site_agents.audit.line import check_line, read_line, write_line
from site_agents.audit.statements import (
    Checkpoint,
    make_key,
    read_key,
    sign_checkpoint,
    start_of,
)
from site_agents.audit.trail import CHAIN, Trail, settle


class AuditChain:
    """One site's chain, open for appending. Safe for several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = read_key(folder)
        self._trail = Trail(start_of(self._key.public_key()))
        self._lock = threading.Lock()
        self._unusable: str | None = None
        self._heads_seen = b""
        self._chain_file = _open(folder / CHAIN, os.O_RDWR | os.O_APPEND)
        try:
            self._head_file = _open(folder / HEAD, os.O_RDWR)
        except BaseException:
            os.close(self._chain_file)
            raise

    @classmethod
    def create(cls, folder: Path) -> None:
        """Make an empty chain and its key. Whole or not at all.

        Raises:
            UsageError: `folder` is there and not empty.
            EnvironmentFailedError: it cannot be written.
        """
        building = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            building.mkdir(mode=0o700, parents=True)
            key = make_key(building)
            first = sign_checkpoint(key, 0, start_of(key.public_key()), now())
            for name, content in ((CHAIN, b""), (HEAD, first_heads(first))):
                create_durably(building / name, content)
            sync_folder(building)
            if folder.is_dir() and any(folder.iterdir()):
                raise UsageError(f"{folder} is not empty: an audit chain is made once, and kept")
            building.rename(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise EnvironmentFailedError(
                f"no audit chain could be made at {folder}: {error.strerror}"
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a chain; every line's place and text are checked, and that none is missing.

        What a crash left behind is set right, and that is recorded: bytes of an unfinished line are
        cut off, a whole line that was not acknowledged is kept.

        Raises:
            IntegrityError: no chain, or acknowledged lines were altered or removed: which.
            EnvironmentFailedError: the files cannot be opened or written.
        """
        chain = cls(folder)
        try:
            chain.refresh()
        except BaseException:
            chain.close()
            raise
        return chain

    @property
    def length(self) -> int:
        """Lines."""
        return self._trail.length

    @property
    def head(self) -> str:
        """The head after the last line, sha256:<hex>."""
        return self._trail.head

    def head_at(self, length: int) -> str | None:
        """Return the head after `length` lines; None if the chain is shorter."""
        return self._trail.head_at(length)

    def refresh(self) -> None:
        """Follow what other processes of the site wrote; raises as `open`."""
        with self._writing():
            pass

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write an entry (values as JSON knows them). It is durable when this returns.

        Raises:
            IntegrityError: the chain was changed by something else.
            EnvironmentFailedError: it cannot be written: take it as not recorded.
        """
        with self._writing():
            self._write(entry)

    def checkpoint(self) -> Checkpoint:
        """Return the signed statement of where the chain stands: every line is signed as one."""
        with self._writing():
            last = self._trail.last
            return last.checkpoint if last else self._heads().newest

    def close(self) -> None:
        """Close the files; nothing can be appended afterwards."""
        with self._lock:
            self._unusable = "this process closed it"
            os.close(self._chain_file)
            os.close(self._head_file)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            if self._unusable:
                raise IntegrityError(f"the audit chain is closed to writing: {self._unusable}")
            try:
                fcntl.flock(self._chain_file, fcntl.LOCK_EX)
                try:
                    self._catch_up()
                    yield
                finally:
                    fcntl.flock(self._chain_file, fcntl.LOCK_UN)
            except IntegrityError as error:
                self._unusable = str(error)
                raise
            except OSError as error:
                raise _unwritable(self._folder / CHAIN, error) from error

    def _catch_up(self) -> None:
        """Follow what other processes wrote, and set right what a dead one left."""
        for name, file in ((CHAIN, self._chain_file), (HEAD, self._head_file)):
            if not _is_at(file, self._folder / name):
                raise IntegrityError(f"audit/{name} was removed or replaced while in use")
        size = os.fstat(self._chain_file).st_size
        if size == self._trail.end and read_heads(self._head_file) == self._heads_seen:
            return
        torn_bytes = self._trail.follow(self._chain_file, size)
        standing = settle(self._trail, self._heads(), torn_bytes)
        if standing.unacknowledged:
            assert self._trail.last is not None
            check_line(self._trail.last, self._key.public_key())
            self._acknowledge(self._trail.last.checkpoint)
        if standing.torn_bytes:
            self._cut_to(self._trail.end)
        self._heads_seen = read_heads(self._head_file)
        if standing.notice:
            self._write(recovered(self._trail.length, standing.notice))

    def _write(self, entry: Mapping[str, Any]) -> None:
        trail = self._trail
        raw, checkpoint = write_line(
            entry,
            index=trail.length + 1,
            at=now(),
            previous=trail.head,
            salt=os.urandom(SALT_BYTES),
            key=self._key,
        )
        try:
            _write_whole(self._chain_file, raw)
            os.fsync(self._chain_file)
        except OSError as error:
            self._cut_to(trail.end)
            raise _unwritable(self._folder / CHAIN, error) from error
        self._acknowledge(checkpoint)
        trail.extend(read_line(raw, trail.length + 1, trail.head), len(raw))
        self._heads_seen = read_heads(self._head_file)

    def _acknowledge(self, checkpoint: Checkpoint) -> None:
        try:
            write_head(self._head_file, checkpoint)
        except OSError as error:
            # Whether the checkpoint is on disk is unknown now: reading both files anew finds out.
            self._heads_seen = b""
            raise _unwritable(self._folder / HEAD, error) from error

    def _cut_to(self, size: int) -> None:
        try:
            os.ftruncate(self._chain_file, size)
            os.fsync(self._chain_file)
        except OSError as error:
            self._unusable = f"an unfinished line could not be cut off ({error.strerror})"
            raise _unwritable(self._folder / CHAIN, error) from error

    def _heads(self) -> Heads:
        return parse_heads(read_heads(self._head_file), self._key.public_key())


def now() -> str:
    """Return the time, UTC, as lines carry it: 2026-11-21T07:40:12.123+00:00."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags)
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{path} is missing: `site-agent init` alone makes an audit chain; "
            "if this site had one, it was removed"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error


def _write_whole(file: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.write(file, data[written:])


def _is_at(file: int, path: Path) -> bool:
    try:
        there, held = path.stat(), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _unwritable(path: Path, error: OSError) -> EnvironmentFailedError:
    return EnvironmentFailedError(
        f"{path} cannot be written: {error.strerror}. What is not recorded does not leave: "
        "make room, or let the agent's user write there"
    )

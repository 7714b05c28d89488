"""A chain, or its later part, as a signed JSON Lines file for somebody outside the site.

Fields or whole entries can be withheld: their commitments stay, so the file still verifies against
the chain's head, and what was withheld cannot be guessed. docs/verify_audit.py checks the file with
nothing but the public key.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import EnvironmentFailedError, UnknownNameError, UsageError
from site_agents.audit.leaf import commitments, field_salt
from site_agents.audit.line import Line, check_line
from site_agents.audit.reading import read
from site_agents.audit.statements import read_key, sign_export


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What an export shows.

    Lines from the first on whose time is `since` ("": all; ISO 8601 in UTC as lines carry it).
    Fields named in `withhold` are not shown. If `run` is given, entries of other runs (and of none)
    are withheld whole.
    """

    since: str
    run: str | None
    withhold: frozenset[str]


def export_line(line: Line, scope: Scope) -> dict[str, Any]:
    """Return a line as it is exported; `fields` and `withheld` are null if it is withheld whole."""
    link = {
        "at": line.at,
        "body": line.body,
        "index": line.index,
        "leaf": line.leaf,
        "previous": line.previous,
    }
    entry = line.fields()
    if scope.run is not None and entry.get("run") != scope.run:
        return {**link, "fields": None, "withheld": None}
    committed = commitments(line.salt, entry)
    shown = {
        name: {"salt": field_salt(line.salt, name).hex(), "value": value}
        for name, value in entry.items()
        if name not in scope.withhold
    }
    hidden = {name: digest for name, digest in committed.items() if name in scope.withhold}
    return {**link, "fields": shown, "withheld": hidden}


def check_export(folder: Path, path: Path, scope: Scope) -> None:
    """Find what would fail before the export is recorded, which is before it is written.

    Raises:
        UsageError: `path` is there already or cannot be written, or a field to withhold is in no
            line: a misspelt name would show what was to be withheld.
        IntegrityError: the chain does not hold.
    """
    if path.exists():
        raise UsageError(f"{path} is there already: name another file")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: its folder is missing or not yours to write")
    names: set[str] = set()
    read(folder, lambda line: names.update(line.fields()))
    if unknown := sorted(scope.withhold - names):
        raise UnknownNameError("field to withhold", unknown[0], names)


def write_export(folder: Path, path: Path, scope: Scope, at: str) -> int:
    """Check the chain in `folder` and export it to `path`; return how many lines.

    The file appears whole or not at all. Its last line signs, with the audit key, the SHA-256 of
    all lines before it, the index of the last and the head after it. `at` is the time, UTC.

    Raises:
        UsageError: no line is that new.
        IntegrityError: the chain does not hold.
        EnvironmentFailedError: the file cannot be written.
    """
    key = read_key(folder)
    public = key.public_key()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as out:
            lines = _Lines(out, scope)

            def take(line: Line) -> None:
                check_line(line, public)
                lines.take(line)

            read(folder, take)
            digest, last = lines.ended()
            signature = sign_export(key, digest, last.index, last.head, at)
            end = {"at": at, "head": last.head, "length": last.index, "lines": digest}
            out.write(to_json({**end, "signature": signature}).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError as error:
        raise EnvironmentFailedError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return lines.count


class _Lines:
    """The exported lines, digested as they are written."""

    def __init__(self, out: BinaryIO, scope: Scope) -> None:
        self._out = out
        self._scope = scope
        self._digest = hashlib.sha256()
        self._last: Line | None = None
        self.count = 0

    def take(self, line: Line) -> None:
        if self._last is None and line.at < self._scope.since:
            return
        exported = export_line(line, self._scope)
        text = to_json(exported).encode() + b"\n"
        self._digest.update(text)
        self._out.write(text)
        self._last = line
        self.count += 1

    def ended(self) -> tuple[str, Line]:
        """Return the digest of all lines, and the last."""
        if self._last is None:
            raise UsageError("no entry to export: the chain has none since then")
        return "sha256:" + self._digest.hexdigest(), self._last

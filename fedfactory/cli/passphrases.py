"""How the lead's commands come by passphrases: a file's first line, typed, or made here."""

from __future__ import annotations

import getpass
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Final

from fedfactory.cli.forms import say
from fedfactory.contracts.errors import UsageError

MAX_PASSPHRASE_FILE: Final = 4096


def present_passphrase(file: Path | None, question: str) -> bytes:
    """Return the passphrase of a key that is there, from a file's first line or as typed."""
    if file is not None:
        return _read(file)
    _check_terminal(question, "--passphrase-file FILE")
    return getpass.getpass(f"{question}: ").encode()


@dataclass(frozen=True, slots=True)
class NewPassphrase:
    """The passphrase of a new key: from `file`, typed twice, or made here and put into `file`."""

    file: Path | None
    question: str
    _: KW_ONLY
    is_generated: bool

    @contextmanager
    def taken(self) -> Iterator[bytes]:
        """Yield it, for the block that makes the key; one that is made here is shown after that.

        A file that is written for it is durable before the block, and gone if the block fails.
        """
        if not self.is_generated:
            yield _read(self.file) if self.file is not None else self._typed()
            return
        from fedfactory.identity.passphrases import generate_passphrase

        if self.file is None:
            _check_terminal(self.question, "a new file for it")
        passphrase = generate_passphrase()
        if self.file is not None:
            _write(self.file, passphrase)
        try:
            yield passphrase.encode()
        except BaseException:
            if self.file is not None:
                with suppress(OSError):
                    self.file.unlink()
            raise
        if self.file is None:
            say(f"{self.question}, shown this once; write it down: {passphrase}")
        else:
            say(f"{self.question}: in {self.file}; keep it apart from the key")

    def _typed(self) -> bytes:
        _check_terminal(self.question, "--passphrase-file FILE")
        typed = getpass.getpass(f"{self.question}: ")
        if getpass.getpass("again: ") != typed:
            raise UsageError("the two passphrases differ; nothing was changed")
        return typed.encode()


def _check_terminal(question: str, instead: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"there is no terminal for the {question}: give {instead}")


def _write(file: Path, passphrase: str) -> None:
    from fedfactory.durable_file import create_durably, sync_folder

    try:
        create_durably(file, f"{passphrase}\n".encode())
        sync_folder(file.absolute().parent)
    except FileExistsError as error:
        raise UsageError(f"{file} is there already: name a new file for the passphrase") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be written ({error.strerror})") from error


def _read(file: Path) -> bytes:
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as opened:
            mode = os.fstat(handle).st_mode
            text = opened.read(MAX_PASSPHRASE_FILE)
    except OSError as error:
        raise UsageError(f"--passphrase-file {file} cannot be read ({error.strerror})") from error
    # A pipe, as of a password manager, has no rights to check.
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        raise UsageError(f"--passphrase-file {file} is open to others: chmod 600 {file}")
    first = text.split(b"\n", 1)[0].rstrip(b"\r")
    if not first:
        raise UsageError(f"--passphrase-file {file}: its first line is empty")
    return first

"""The policy file on disk, and the clock on its wall: what the pure policy is asked with."""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fedfactory.durable_file import write_durably
from site_agents.policy import OperatorPin, Policy, PolicyFileError, parse_policy
from site_agents.policy.edit import with_pin
from site_agents.policy.text import pin_text
from site_agents.trusted_file import write_fault

MAX_BYTES: Final = 256 * 1024


def load_policy(path: Path) -> Policy:
    """Return the policy as the file says it now.

    Read whole each time, so that a change takes effect at the next order; the same text is parsed
    once (a few milliseconds).

    Raises:
        PolicyFileError: there is no file, somebody else may write it, or it does not hold; says
            file, line and column.
    """
    return _parsed(_read(path), str(path))


@functools.lru_cache(maxsize=4)
def _parsed(text: str, name: str) -> Policy:
    return parse_policy(text, name=name, known_zone=_is_zone)


def change_pin(path: Path, name: str, pin: OperatorPin) -> None:
    """Write another pin of one operator into the policy file; comments and layout stay.

    Raises:
        PolicyFileError: the file is not one, pins no such operator, or is another user's.
        OSError: it cannot be written; it is as it was.
    """
    path = path.resolve()
    text, found = _read(path), path.stat()
    if found.st_uid != os.geteuid():  # the agent could not read what another user puts in its place
        raise PolicyFileError(f"{path} is another user's: run this as that user")
    policy = parse_policy(text, name=str(path), known_zone=_is_zone)
    changed = with_pin(text, name, pin, file=str(path))
    expected = replace(policy, operators={**policy.operators, name: pin})
    if parse_policy(changed, name=str(path), known_zone=_is_zone) != expected:
        raise PolicyFileError(
            f"{path}: its layout cannot be kept: write under operators {name}: {pin_text(pin)}"
        )
    write_durably(path, changed)
    path.chmod(stat.S_IMODE(found.st_mode))


def local_minute(policy: Policy, now: float) -> int:
    """Return the minute of the day (0..1439) at Unix time `now`, in the policy's time zone."""
    zone = _zone(policy.hours.time_zone) if policy.hours else UTC
    local = datetime.fromtimestamp(now, zone)
    return 60 * local.hour + local.minute


def _read(path: Path) -> str:
    try:
        fault = write_fault(path)
        # Without waiting: a pipe in its place would hold up the agent for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            mode = os.fstat(handle).st_mode
            raw = file.read(MAX_BYTES + 1) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise PolicyFileError(
            f"{path} cannot be read ({error.strerror}): `site-agent init` makes a site's home"
        ) from error
    if not stat.S_ISREG(mode):
        raise PolicyFileError(f"{path} is no regular file")
    if fault is not None:
        raise PolicyFileError(f"{path} is not this site's alone: {fault}")
    if len(raw) > MAX_BYTES:
        raise PolicyFileError(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PolicyFileError(f"{path}:{line}:1: not UTF-8 text") from error


def _is_zone(name: str) -> bool:
    try:
        _zone(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _zone(name: str) -> tzinfo:
    # A machine without a time zone database still knows UTC.
    return UTC if name == "UTC" else ZoneInfo(name)

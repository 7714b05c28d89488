"""What a run's process says: RUN/serverapp.log, bounded in size."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

RUN_LOG: Final = "serverapp.log"
# What a process says before its log is open, and when the interpreter itself breaks.
LAST_GASP: Final = "process.err"
# The log and the one before it, each.
MAX_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 4096
_LOGGERS: Final = ("fedfactory", "flwr")

log = logging.getLogger("fedfactory.runner")


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Write what is logged inside the block, and what ends it, to the log of a run's folder.

    Raises:
        OSError: it cannot be written.
    """
    handler = RotatingFileHandler(folder / RUN_LOG, maxBytes=MAX_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [found.level for found in loggers]
    for found in loggers:
        found.addHandler(handler)
        found.setLevel(logging.INFO)
    try:
        log.info("the run's process %d begins", os.getpid())
        yield
        log.info("the run's process %d ends", os.getpid())
    except Exception as error:
        # The sentence comes last, where people and `last_word` look.
        log.exception("the run's process %d broke", os.getpid())
        log.error("%s: %s", type(error).__name__, error)  # noqa: TRY400
        raise
    finally:
        for found, level in zip(loggers, levels, strict=True):
            found.removeHandler(handler)
            found.setLevel(level)
        handler.close()


def last_word(path: Path) -> str:
    """Return the last line of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""

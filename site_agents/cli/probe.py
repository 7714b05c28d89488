"""`site-agent probe`: look at this machine and write a patch for its file in the catalogue."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.completers import completed, machine_names
from fedfactory.contracts.errors import UsageError
from site_agents.catalogue import load_site, site_text
from site_agents.probe import COMMANDS, Command, facts_seen
from site_agents.probe_patch import differing, patch, unknown_seen

TIMEOUT_S: Final = 60
DESCRIPTION: Final = """\
Runs sinfo, scontrol and nvidia-smi (each only lists), fills what the catalogue does not know of
NAME, and writes the patch. Run it on a login node; again inside a job on a GPU node for what only
nvidia-smi tells. Changes no file of the catalogue: `git apply FILE` does, once a person read it.
"""


def main(words: Sequence[str]) -> int:
    """Write the patch to --out or standard output, and what was seen to standard error; return 0.

    Raises:
        UsageError: the file of --out is there already, or cannot be written.
        EnvironmentFailedError: a listing has not the form that is known.
    """
    parser = Arguments(prog="site-agent probe", description=DESCRIPTION)
    name = parser.add_argument("name", metavar="NAME", help="a machine of the catalogue, or alias")
    completed(name, machine_names)
    parser.add_argument("--out", type=Path, metavar="FILE", help="a new file for the patch")
    asked = parser.parse_args(words)
    site = load_site(asked.name)
    listings = {c: text for c in COMMANDS if (text := _listing(c)) is not None}
    in_job = "SLURM_JOB_ID" in os.environ
    seen = facts_seen(listings, architecture=platform.machine(), in_job=in_job)
    for line in differing(site, seen):
        _say(f"differs, not in the patch: {line}")
    if not (filled := unknown_seen(site, seen)):
        _say(f"nothing seen that the catalogue lacks of {site.machine}")
        return 0
    today = datetime.now(UTC).date().isoformat()
    _write(patch(site, site_text(site.machine), seen, today), asked.out)
    _say(f"fills {len(filled)} unknown facts of {site.machine}: {', '.join(filled)}")
    return 0


def _listing(words: Command) -> str | None:
    """Run one command and return what it lists, or say why there is nothing and return None."""
    shown = " ".join(words)
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
            text=True,
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError:
        _say(f"{shown}: no such command here")
    except subprocess.TimeoutExpired:
        _say(f"{shown}: no answer in {TIMEOUT_S} s")
    except subprocess.CalledProcessError as error:
        complaint: str = (error.stderr or error.stdout).strip().partition("\n")[0]
        _say(f"{shown}: exit code {error.returncode}: {complaint}")
    else:
        return done.stdout
    return None


def _write(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"--out {out}: is there already; name a new file") from error
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from error


def _say(line: str) -> None:
    print(line, file=sys.stderr)

"""`fedfactory whoami`: whose folder this is, and the fingerprint that sites compare and pin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fedfactory.cli.forms import tell
from fedfactory.cli.operating import operating, operator_folder


def run(words: Sequence[str]) -> int:
    """Print it, from files alone; return 0, or 1 if the certificate does not count now."""
    parser = operating(
        "whoami",
        "Show name, role, key and certificate of an enrolled folder. Read the fingerprint to a"
        " site's administrator, who confirms it: site-agent policy confirm-operator NAME"
        " FINGERPRINT. Exit code 1: the certificate has ended, or does not fit its key.",
    )
    asked = parser.parse_args(words)
    from fedfactory.identity.operators import describe_folder

    folder = operator_folder(asked.folder)
    found = describe_folder(folder)
    document = {
        "name": found.name,
        "role": found.role,
        "fingerprint": found.fingerprint,
        "valid_from": found.valid_from,
        "valid_until": found.valid_until,
        "consortium": found.consortium,
        "gateway": found.gateway,
        "coordinator_key": found.coordinator_key,
        "folder": str(folder),
        "fault": found.fault,
    }
    tell(asked, document, ids=[found.fingerprint], words=_lines(document))
    return int(bool(found.fault))


def _lines(told: dict[str, Any]) -> list[str]:
    from fedfactory.identity.lifetime import LEFT_AT_RENEWAL
    from fedfactory.operator.telling import moment

    begin, end = told["valid_from"], told["valid_until"]
    days = (end - time.time()) / 86400
    renewed = moment(end - LEFT_AT_RENEWAL * (end - begin))
    ends = f"for {days:.1f} days more; commands renew it from {renewed} on" if days > 0 else "ended"
    lines = [
        f"{told['role']:<12} {told['name']}",
        f"fingerprint  {told['fingerprint']}",
        f"certificate  {moment(told['valid_from'])} to {moment(told['valid_until'])}, {ends}",
        f"consortium   {told['consortium']}, gateway {told['gateway']}",
        f"             coordinator's key {told['coordinator_key']}",
        f"folder       {told['folder']}",
    ]
    return [*lines, f"! {told['fault']}"] if told["fault"] else lines

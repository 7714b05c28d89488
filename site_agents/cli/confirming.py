"""`site-agent policy confirm-operator`: a person compared an operator's fingerprint; until when."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Final

from fedfactory.cli.completers import completed
from fedfactory.cli.forms import tell_done
from fedfactory.contracts.errors import FedfactoryError, UsageError
from site_agents.cli.home import add_home, find_home
from site_agents.config import POLICY_FILE

PIN_S: Final = 365 * 86400.0


def add_confirm_operator(parser: ArgumentParser) -> None:
    """Add what confirm-operator takes."""
    add_home(parser)
    name = parser.add_argument("name", metavar="NAME", help="as policy.yaml pins it")
    completed(name, pinned_operators)
    parser.add_argument(
        "fingerprint",
        metavar="FINGERPRINT",
        help="sha256:..., as the operator reads it to you from `fedfactory whoami`",
    )
    parser.add_argument(
        "--until", metavar="DATE", help="the last day of the pin (default: a year from now)"
    )


def pinned_operators(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """Return the names that the policy of the home pins."""
    from site_agents.policy_file import load_policy

    try:
        policy = load_policy(find_home(parsed_args.home) / POLICY_FILE)
    except FedfactoryError:
        return []
    return [name for name in policy.operators if name.startswith(prefix)]


def confirm_operator(home: Path, asked: Namespace) -> int:
    """Write who compared the fingerprint, and the pin's last day; return 0.

    Raises:
        UsageError: the policy pins no such operator, or another key; or a day that has passed.
    """
    from site_agents.cli.recording import record
    from site_agents.person import person
    from site_agents.policy import Confirmation, OperatorPin
    from site_agents.policy.pins import day_text, is_date
    from site_agents.policy.text import pin_text
    from site_agents.policy_file import change_pin, load_policy
    from site_agents.revocations import kept_of

    path, now = home / POLICY_FILE, time.time()
    today, until = day_text(now), asked.until or day_text(now + PIN_S)
    if not is_date(until) or until < today:
        raise UsageError(f"--until {until!a}: expected a day from today on, as in {today}")
    pins, key = load_policy(path).operators, asked.fingerprint.lower()
    pin = OperatorPin(key=key, until=until, confirmed=Confirmation(by=person(), on=today))
    pinned = pins.get(asked.name)
    if pinned is None:
        raise UsageError(
            f"{path} pins no operator '{asked.name}' ({', '.join(pins) or 'none'}); to let them"
            f" ask, add under operators:  {asked.name}: {pin_text(pin)}"
        )
    if pinned.key != key:
        raise UsageError(
            f"{path} pins {pinned.key} for '{asked.name}', you gave {key!a}: nothing was"
            " changed. Ask the operator by another way than both came; a new key is yours to write"
        )
    if (revoked := kept_of(home, key)) is not None:
        raise UsageError(
            f"the key of '{asked.name}' was revoked ({revoked.told}): it never counts again; a new"
            " key of theirs needs a pin of its own"
        )
    record(home, "operator_confirmed", actor=person(), operator=asked.name, key=key, until=until)
    change_pin(path, asked.name, pin)
    return tell_done(
        asked, f"'{asked.name}' is confirmed, and counts until {until}", key=key, until=until
    )

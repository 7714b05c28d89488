"""Makes a site's home: configuration, policy, ledger and audit chain, all or nothing.

Only this creates a ledger and an audit chain: an agent that finds none refuses to work.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import UsageError
from fedfactory.durable_file import create_durably, sync_folder
from fedfactory.wire.enrolling import INVITATION
from fedfactory.wire.membership import Invitation
from site_agents.config import AGENT_FILE, POLICY_FILE, AgentConfig, load_agent_config
from site_agents.enrolling import IDENTITY
from site_agents.person import person

FOLDERS: Final = ("control", "spool", "logs")
_HEADER: Final = """\
# How this site's agent runs; what is allowed is in policy.yaml. `site-agent run --help` lists every
# key with its default. Read at the start of the agent.
"""


def agent_text(
    *,
    site: str,
    gateway_address: str,
    data: Mapping[str, Mapping[str, Any]],
    worker: Mapping[str, Any] | None = None,
    ledger: Path | None = None,
    second_place: Path | None = None,
) -> str:
    """Return the text of an agent.yaml; `worker` holds what differs from conf/agent.yaml. Pure."""
    values: dict[str, Any] = {
        "site": site,
        "gateway": gateway_address,
        "data": {name: dict(options) for name, options in data.items()},
    }
    if worker:
        values["worker"] = dict(worker)
    if ledger is not None:
        values["ledger"] = str(ledger)
    if second_place is not None:
        values["second_place"] = str(second_place)
    return _HEADER + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def make_home(
    home: Path,
    *,
    site: str,
    gateway_address: str,
    data: Mapping[str, Mapping[str, Any]],
    policy_text: str,
    worker: Mapping[str, Any] | None = None,
    ledger: Path | None = None,
    second_place: Path | None = None,
    invitation: Invitation | None = None,
) -> AgentConfig:
    """Make a site's home and return its configuration; `home` appears whole or not at all.

    `data` maps each source's name to its options, `policy_text` is the text of policy.yaml. An
    `invitation` waits in the home until the agent, or `site-agent enrol`, makes the keys with it.

    Raises:
        UsageError: `home` is there already, or cannot be written; a value of the configuration or
            the policy is out of range.
    """
    home = home.absolute()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise UsageError(f"{home} is there already and not empty: name another folder for --home")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))  # 0700
    except OSError as error:
        raise UsageError(f"{home} cannot be made ({error.strerror})") from error
    made: list[Path] = []
    try:
        text = agent_text(
            site=site,
            gateway_address=gateway_address,
            data=data,
            worker=worker,
            ledger=ledger,
            second_place=second_place,
        )
        create_durably(making / AGENT_FILE, text.encode())
        create_durably(making / POLICY_FILE, policy_text.encode())
        if invitation is not None:
            (making / IDENTITY).mkdir(mode=0o700)
            create_durably(making / IDENTITY / INVITATION, to_json(invitation).encode())
        _fill(making, made)
        making.replace(home)
        made.clear()
    except OSError as error:
        raise UsageError(f"{error.filename or home} cannot be made ({error.strerror})") from error
    finally:
        for folder in (making, *made):
            shutil.rmtree(folder, ignore_errors=True)
    sync_folder(home.parent)
    return load_agent_config(home, [])


def _fill(home: Path, made: list[Path]) -> None:
    """Check what was written, then make the books; `made` takes folders made elsewhere."""
    from site_agents.audit import AuditChain
    from site_agents.ledger import Ledger
    from site_agents.policy_file import load_policy

    config = load_agent_config(home, [])
    policy = load_policy(home / POLICY_FILE)
    for name in FOLDERS:
        (home / name).mkdir(mode=0o700)
    AuditChain.create(home / "audit")
    if config.ledger != home:
        # A folder of its own: what lies there already is somebody else's, or a ledger that holds.
        config.ledger.mkdir(mode=0o700, parents=True)
        made.append(config.ledger)
    lineages = {rule.lineage: policy.delta for rule in policy.data.values()}
    Ledger.create(config.ledger, lineages, actor=person())

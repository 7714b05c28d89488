"""What a person decided, in the audit chain of their site, beside the agent's own lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def record(home: Path, event: str, *, actor: str, **details: Any) -> None:
    """Append an entry; durable when it returns.

    Raises:
        IntegrityError: the chain does not hold.
        EnvironmentFailedError: it cannot be written.
    """
    from site_agents.audit import AuditChain
    from site_agents.audit.entries import administrative

    chain = AuditChain.open(home / "audit")
    try:
        chain.append(administrative(event, actor=actor, **details))
    finally:
        chain.close()

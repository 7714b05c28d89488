"""The site's record of all that left it and of all that its people decided."""

from site_agents.audit.chain import AuditChain

__all__ = ["AuditChain"]

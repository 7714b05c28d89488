"""One role per certificate, written into it and read back from a connection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fedfactory.contracts.errors import IdentityError

SCHEME: Final = "fedfactory"


class Role(StrEnum):
    """What the holder of a certificate may be."""

    COORDINATOR = "coordinator"
    SITE = "site"
    OPERATOR = "operator"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end of a connection."""

    role: Role
    name: str

    @property
    def uri(self) -> str:
        """The subject alternative name that carries it: fedfactory:<role>:<name>."""
        return f"{SCHEME}:{self.role}:{self.name}"


def peer_of(auth_context: Mapping[str, Iterable[bytes]]) -> Peer:
    """Return the peer named by gRPC's authentication context.

    Raises:
        IdentityError: no certificate, or one that carries not exactly one known role.
    """
    names = [n.decode() for n in auth_context.get("x509_subject_alternative_name", ())]
    uris = [name for name in names if name.startswith(f"{SCHEME}:")]
    if len(uris) != 1:
        raise IdentityError(f"a certificate must carry exactly one role; this one has {len(uris)}")
    _, role, name = (*uris[0].split(":", 2), "", "")[:3]
    if role not in set(Role) or not name:
        raise IdentityError("the certificate's role is not known")
    return Peer(role=Role(role), name=name)

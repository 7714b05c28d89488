"""One role per certificate, written into it and read back from a connection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from fedfactory.contracts.errors import IdentityError

SCHEME: Final = "fedfactory"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Role(StrEnum):
    """What the holder of a certificate may be."""

    COORDINATOR = "coordinator"
    SITE = "site"
    OPERATOR = "operator"
    VIEWER = "viewer"
    INVITED = "invited"  # may enrol, and nothing else


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end of a connection.

    Raises:
        IdentityError: a name that is not 1 to 64 letters, digits, '.', '_', '-'.
    """

    role: Role
    name: str

    def __post_init__(self) -> None:
        # Names become file names and certificate fields: nothing that could mean more than a name.
        if not _NAME.fullmatch(self.name):
            raise IdentityError(
                f"'{self.name}' cannot be a name: expected 1 to 64 letters, digits, '.', '_', '-',"
                " the first a letter or digit"
            )

    @property
    def uri(self) -> str:
        """The subject alternative name that carries it: fedfactory:<role>:<name>."""
        return f"{SCHEME}:{self.role}:{self.name}"


def peer_of(auth_context: Mapping[str, Any]) -> Peer:
    """Return the peer named by gRPC's authentication context (property name -> list of bytes).

    Raises:
        IdentityError: no certificate, or one that carries not exactly one known role.
    """
    prefix = f"{SCHEME}:".encode()
    names = auth_context.get("x509_subject_alternative_name", ())
    uris = [name.decode("ascii", "replace") for name in names if name.startswith(prefix)]
    if len(uris) != 1:
        raise IdentityError(f"a certificate must carry exactly one role; this one has {len(uris)}")
    _, role, name = (*uris[0].split(":", 2), "", "")[:3]
    if role not in set(Role):
        raise IdentityError("the certificate's role is not known")
    return Peer(role=Role(role), name=name)

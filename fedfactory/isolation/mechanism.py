"""How a worker is kept off the network, and which mechanism a site gets. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from fedfactory.contracts.errors import EnvironmentFailedError

Network = Literal["isolated", "not_enforced"]
"""What worker.network asks for; None, its default: isolated where the kernel permits it."""

Mechanism = Literal["namespaces", "seccomp", "none"]
"""`namespaces`: a network namespace with a loopback of its own, and a filter against Unix sockets.

`seccomp`: a filter alone, no socket at all. `none`: nothing is enforced.
"""

NETWORKS: Final[tuple[Network, ...]] = get_args(Network)
WHERE_POSSIBLE: Final = "where_possible"  # None, on a command line
# The best first.
MECHANISMS: Final[tuple[Mechanism, ...]] = ("namespaces", "seccomp")
SAYS: Final[Mapping[Mechanism, str]] = {
    "namespaces": "isolated by namespaces: a loopback of its own, nothing outside is reached",
    "seccomp": "isolated by seccomp: no sockets, also none on loopback",
    "none": "not enforced: a worker can open connections",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """`mechanism` holds; `refusals` says why each better one does not, by mechanism."""

    mechanism: Mechanism
    refusals: Mapping[Mechanism, str]

    @property
    def sentence(self) -> str:
        """What holds and why nothing better does, for a log line or a person."""
        why = "; ".join(f"no {name}: {reason}" for name, reason in self.refusals.items())
        return f"{SAYS[self.mechanism]}{f' ({why})' if why else ''}"


def choose(network: Network | None, refusals: Mapping[Mechanism, str]) -> Isolation:
    """Return how workers are isolated, given which mechanisms the kernel refuses, and why.

    Raises:
        EnvironmentFailedError: isolation is asked for and the kernel refuses every mechanism.

    >>> choose(None, {"namespaces": "Operation not permitted"}).mechanism
    'seccomp'
    """
    if network == "not_enforced":
        return Isolation(mechanism="none", refusals={})
    for mechanism in MECHANISMS:
        if mechanism not in refusals:
            return Isolation(mechanism=mechanism, refusals=refusals)
    if network == "isolated":
        why = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        raise EnvironmentFailedError(
            f"worker.network is isolated, and this machine permits neither way ({why}); allow user"
            " namespaces or seccomp here, or accept that workers can open connections with"
            " worker.network: not_enforced in agent.yaml"
        )
    return Isolation(mechanism="none", refusals=refusals)

"""The enrolled sites as SuperLink and gateway know them: node keys registered, nodes admitted.

SuperLink keeps nothing: after each start of one, every site is registered anew under a new node id,
and all doorbells are hung up, so that the agents come back and activate again at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from fedfactory.coordinator.flower_seam import SuperLinkClient, SuperLinkGoneError

log = logging.getLogger("fedfactory.coordinator")


class Door(Protocol):
    """What is needed of the gateway."""

    def admit(self, site: str, node_id: int, public_key: bytes) -> None:
        """Let a site in, as that node."""

    def hang_up_all(self) -> None:
        """End every doorbell's call."""

    def roster(self) -> dict[str, int]:
        """Node ids of the admitted sites."""


class Roll:
    """Keeps both in step with the registry; any thread. `client` knows the sites, or is None.

    `door` is set once there is one; `sites()` maps each enrolled site to its node key (PEM),
    `seen(site)` notes that a site is here, `replace()` ends the SuperLink that there is, so that
    another is started. It listens to the gateway.
    """

    door: Door

    def __init__(
        self,
        sites: Callable[[], Mapping[str, str]],
        seen: Callable[[str], None],
        replace: Callable[[], None],
    ) -> None:
        self.client: SuperLinkClient | None = None
        self._sites = sites
        self._seen = seen
        self._replace = replace
        self._lock = threading.Lock()

    def follow(self, client: SuperLinkClient | None) -> None:
        """Take over a SuperLink that is new to us.

        If it is gone again meanwhile, nothing is changed, and the next call tries anew.
        """
        with self._lock:
            if client is self.client:
                return
            self.client = None
            if client is None:
                return
            sites = self._sites()
            try:
                nodes = {site: client.register_node(k.encode(), site) for site, k in sites.items()}
            except SuperLinkGoneError as error:
                log.warning("the sites could not be registered: %s", error.diagnostic)
                return
            for site, node_id in nodes.items():
                self.door.admit(site, node_id, sites[site].encode())
            self.door.hang_up_all()
            self.client = client
            log.info("SuperLink is ready; %d sites registered", len(nodes))

    def add(self, site: str, key: str) -> None:
        """Register a site that has just enrolled, or enrolled anew, and let it in.

        A SuperLink never takes a key again that was taken away from it: then it is replaced.
        """
        with self._lock:
            if self.client is None:
                return  # `follow` registers it with the others
            old = self.door.roster().get(site)
            try:
                if old is not None:
                    self.client.unregister_node(old)
                node_id = self.client.register_node(key.encode(), site)
            except SuperLinkGoneError:
                log.warning("'%s' enrolled again with its node key: replacing SuperLink", site)
                self._replace()
                return
            self.door.admit(site, node_id, key.encode())

    def remove(self, node_id: int | None) -> None:
        """Take a site's node away from SuperLink."""
        with self._lock:
            if self.client is not None and node_id is not None:
                with suppress(SuperLinkGoneError):
                    self.client.unregister_node(node_id)

    # ---- what the gateway tells (Listener) -------------------------------------------------

    def replied(self, message_id: str) -> None:
        """See gateway.Listener. A run's matter."""

    def came(self, site: str) -> None:
        """See gateway.Listener."""
        self._seen(site)

    def went(self, site: str) -> None:
        """See gateway.Listener."""
        self._seen(site)

"""A Landlock domain (landlock(7)): its processes can't trace others or read their memory in /proc.

Where the kernel has it, this closes what a filter can't judge. A domain has to restrict something:
signals to processes outside of it (ABI 6, Linux 6.12), or TCP where there is none anyhow (ABI 4,
Linux 6.7). Older ABIs know the restriction of files alone, which would change how files are moved.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from fedfactory.isolation.linux import (
    create_landlock_ruleset,
    enter_landlock_ruleset,
    landlock_version,
)

_SCOPED_FROM: Final = 6
_TCP_FROM: Final = 4
_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 0b11
_BIND_AND_CONNECT_TCP: Final = 0b11


def enter_domain(*, own_network: bool) -> None:
    """Enter a domain of this process's own, for good, if the kernel has one. no_new_privs is set.

    Raises:
        OSError: the kernel has Landlock and refuses.
    """
    version = landlock_version()
    if version >= _SCOPED_FROM:
        tcp, scopes = 0, _ABSTRACT_SOCKETS_AND_SIGNALS
    elif version >= _TCP_FROM and not own_network:
        tcp, scopes = _BIND_AND_CONNECT_TCP, 0
    else:
        return
    # struct landlock_ruleset_attr: files, TCP, scopes. What an older kernel does not know is 0.
    ruleset = create_landlock_ruleset(struct.pack("=QQQ", 0, tcp, scopes))
    try:
        enter_landlock_ruleset(ruleset)
    finally:
        os.close(ruleset)

"""Founds a consortium: root key, coordinator's home and first operator, all or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import yaml

from fedfactory.contracts.errors import ProtocolError, UsageError
from fedfactory.coordinator.coordinator_config import COORDINATOR_FILE
from fedfactory.coordinator.membership.consortium import (
    IDENTITY,
    ISSUER,
    Consortium,
    coordinator_identity,
    open_consortium,
    write_consortium,
)
from fedfactory.coordinator.membership.inviting import issued
from fedfactory.durable_file import create_durably, sync_folder
from fedfactory.identity import operators
from fedfactory.identity.enrolment import install_certificate, read_request, request_identity
from fedfactory.identity.issuer import Issuer
from fedfactory.identity.operators import Membership, save_membership
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.root import Root
from fedfactory.wire.invitations import check_address
from fedfactory.wire.tls import is_loopback

_HEADER: Final = """\
# How this coordinator runs. docs/coordinator.md lists every key with its default. Read at the start
# of the coordinator.
"""
FIRST_LIFETIME: Final = timedelta(days=30)


def make_consortium(
    home: Path,
    *,
    name: str,
    root_key: Path,
    passphrase: bytes,
    hosts: Sequence[str],
    gateway: str,
    operator: str,
    operator_folder: Path,
) -> Consortium:
    """Found the consortium `name`, whose gateway is at 'host:port', and return it.

    `root_key` is where the root's key goes, under `passphrase`; `operator_folder` becomes that of
    its first operator. `hosts` are further names or addresses of the gateway's.

    Raises:
        UsageError: a name or address that cannot be one, a folder or file that is there already or
            cannot be written, a passphrase that is too short. Nothing is left.
        IdentityError: a name that cannot be one.
    """
    home, root_key = home.absolute(), root_key.absolute()
    operator_folder = operator_folder.absolute()
    Peer(role=Role.COORDINATOR, name=name)
    Peer(role=Role.OPERATOR, name=operator)
    try:
        check_address(gateway)
    except ProtocolError as error:
        raise UsageError(f"'{gateway}': {error.public_message}") from error
    if root_key.is_relative_to(home) or operator_folder.is_relative_to(home):
        raise UsageError(
            f"the root key and the operator's folder cannot lie in {home}: the first is to be kept"
            " offline, the second is a person's"
        )
    if home.is_relative_to(operator_folder):
        raise UsageError(f"{home} cannot lie in the operator's folder {operator_folder}")
    for folder in (home, operator_folder):
        _check_absent(folder)
    names = tuple(dict.fromkeys((gateway.rpartition(":")[0].strip("[]"), *hosts)))
    made: list[Path] = []
    try:
        making_home = _begin(home, made)
        making_operator = _begin(operator_folder, made)
        root = Root.new(name)
        _fill(making_home, name=name, gateway=gateway, hosts=names, root=root)
        _fill_operator(open_consortium(making_home), operator, making_operator)
        root.save(root_key, passphrase)
        made.append(root_key)
        # The coordinator's home last: with it the consortium is founded.
        for making, folder in ((making_operator, operator_folder), (making_home, home)):
            making.replace(folder)
            made.append(folder)
            sync_folder(folder.parent)
    except BaseException as error:
        for path in made:
            _remove(path)
        if isinstance(error, OSError):
            where = error.filename or home
            raise UsageError(f"{where} cannot be made ({error.strerror})") from error
        raise
    return open_consortium(home)


def _fill(home: Path, *, name: str, gateway: str, hosts: Sequence[str], root: Root) -> None:
    """Make a coordinator's home, its issuer certified by `root`."""
    bind = gateway.rpartition(":")[0] if is_loopback(gateway) else "0.0.0.0"  # noqa: S104
    values = {"name": name, "listen": f"{bind}:{gateway.rpartition(':')[2]}"}
    text = _HEADER + yaml.safe_dump(values, sort_keys=False)
    create_durably(home / COORDINATOR_FILE, text.encode())
    Issuer.create(home / ISSUER, name, root)
    write_consortium(home, name=name, gateway=gateway, hosts=hosts)
    request_identity(home / IDENTITY, Role.COORDINATOR, name)
    consortium = open_consortium(home)
    coordinator_identity(consortium, FIRST_LIFETIME)
    consortium.registry().close()


def _fill_operator(consortium: Consortium, name: str, folder: Path) -> None:
    """Make an operator's folder, enrolled without an invitation."""
    identity, issuer = folder / operators.IDENTITY, consortium.issuer()
    request_identity(identity, Role.OPERATOR, name)
    chain = issuer.sign(read_request(identity).csr_pem, Role.OPERATOR, name, FIRST_LIFETIME)
    with consortium.registry() as registry:
        registry.enlist(Peer(role=Role.OPERATOR, name=name), issued(chain, issuer))
    install_certificate(identity, chain, issuer.bundle_pem)
    membership = Membership(
        consortium=consortium.name,
        gateway=consortium.gateway,
        name=name,
        role=Role.OPERATOR,
        coordinator_key=consortium.coordinator_key,
    )
    save_membership(folder, membership)


def _check_absent(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not empty: name another folder")


def _begin(folder: Path, made: list[Path]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))  # 0700
    made.append(making)
    return making


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)

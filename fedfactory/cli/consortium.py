"""`fedfactory consortium`: founds a consortium on the coordinator's host, shows it, rotates it.

The root's key is written under a passphrase where --root-key says. It is needed again only for
`rotate`: keep the file offline, and a copy of it elsewhere. Lost, the consortium lives on until its
issuer ends, and then has to be founded and enrolled anew. A new passphrase has 12 characters or
more, or is made by --generate-passphrase: then it is shown once on the terminal, or written to a
new file (0600).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms, say, tell, tell_done
from fedfactory.cli.invite import tell_invitation
from fedfactory.cli.passphrases import NewPassphrase, present_passphrase
from fedfactory.contracts.errors import UsageError

if TYPE_CHECKING:
    from fedfactory.identity.root import Root


def run(words: Sequence[str]) -> int:
    """Run one of the sub-commands; return 0."""
    asked = _parser().parse_args(words)
    action: Callable[[argparse.Namespace], None] = asked.action
    action(asked)
    return 0


def _init(asked: argparse.Namespace) -> None:
    from fedfactory.cli.operating import operator_folder
    from fedfactory.coordinator.membership.founding import make_consortium

    folder = operator_folder(asked.operator_folder)
    wanted = NewPassphrase(
        asked.passphrase_file, "passphrase for the root key", is_generated=asked.generate_passphrase
    )
    with wanted.taken() as passphrase:
        made = make_consortium(
            asked.home,
            name=asked.name,
            root_key=asked.root_key,
            passphrase=passphrase,
            hosts=asked.host,
            gateway=asked.gateway,
            operator=asked.operator,
            operator_folder=folder,
        )
    tell(
        asked,
        {
            "consortium": made.name,
            "home": str(made.home),
            "coordinator_key": made.coordinator_key,
            "root_key": str(asked.root_key),
            "operator": asked.operator,
            "operator_folder": str(folder),
        },
        ids=[made.coordinator_key],
        words=[
            f"founded '{made.name}' at {made.home}",
            f"coordinator's key, for sites to pin: {made.coordinator_key}",
            "next:",
            f"  1. Move {asked.root_key} offline, with a copy elsewhere: rotations need it.",
            f"  2. fedfactory coordinator --home {made.home}",
            f"  3. {folder} is {asked.operator}'s: move it to where that person works. Then there:",
            f"     fedfactory invite SITE --as {folder}",
        ],
    )


def _rotate(asked: argparse.Namespace) -> None:
    from fedfactory.coordinator.membership.consortium import (
        finish_rotation,
        open_consortium,
        rotate,
    )
    from fedfactory.identity.root import Root

    consortium = open_consortium(asked.home)
    _check_new_passphrase(asked)
    if asked.finish:
        finish_rotation(consortium)
        tell_done(asked, "the old root counts no more; its key can be destroyed")
        return
    if asked.root_key is None or (asked.new_root_key is None) != asked.issuer:
        raise UsageError(
            "give --root-key FILE and --new-root-key FILE; or --root-key FILE --issuer; or --finish"
        )
    issuer = consortium.issuer()
    old = _open_root(asked.root_key, asked.passphrase_file)
    issuer.check_present_root(old)
    if asked.issuer:
        issuer.renew_issuer(old)
        end = issuer.certificate.not_valid_after_utc
        tell_done(asked, f"a new issuer signs until {end:%Y-%m-%d}; members notice nothing")
        return
    issuer.check_single_root()
    if asked.new_root_key.absolute().is_relative_to(consortium.home):
        raise UsageError(f"a root key cannot lie in {consortium.home}: it is to be kept offline")
    new = Root.new(consortium.name)
    file = asked.new_passphrase_file
    if file is None and not asked.generate_passphrase:
        file = asked.passphrase_file
    wanted = NewPassphrase(
        file, "passphrase for the new root key", is_generated=asked.generate_passphrase
    )
    with wanted.taken() as passphrase:
        new.save(asked.new_root_key, passphrase)
    rotate(consortium, old, new)
    tell_done(
        asked,
        f"a new root signs; its key is {asked.new_root_key}. Members follow as they renew.",
        "`fedfactory consortium show` tells who still needs the old one. When nobody does:",
        f"  fedfactory consortium rotate --finish --home {consortium.home}",
        root_key=str(asked.new_root_key),
    )


def _invite(asked: argparse.Namespace) -> None:
    from fedfactory.contracts.codec import to_json
    from fedfactory.coordinator.membership.consortium import open_consortium
    from fedfactory.coordinator.membership.inviting import INVITATION_S, invite
    from fedfactory.durable_file import create_durably
    from fedfactory.identity.roles import Role
    from fedfactory.wire.membership import InviteRequest

    if asked.out.exists():
        raise UsageError(f"{asked.out} is there already: name another file for --out")
    consortium = open_consortium(asked.home)
    wanted = InviteRequest(role=Role.OPERATOR, name=asked.name, lifetime_s=INVITATION_S)
    with consortium.registry() as registry:
        invitation = invite(
            consortium, registry, consortium.issuer(), wanted, by="the coordinator's host"
        )
    create_durably(asked.out, to_json(invitation).encode())
    tell_invitation(asked, asked.out, invitation)


def _show(asked: argparse.Namespace) -> None:
    from fedfactory.coordinator.membership.consortium import open_consortium
    from fedfactory.coordinator.membership.overview import overview

    told = overview(open_consortium(asked.home))
    tell(asked, told, ids=[told["coordinator"]["key"]], words=_lines(told))


def _lines(told: Mapping[str, Any]) -> list[str]:
    coordinator, issuer = told["coordinator"], told["issuer"]
    lines = [
        f"consortium   {told['consortium']}, format {told['format']}",
        f"gateway      {told['gateway']} ({', '.join(told['hosts'])})",
        f"coordinator  {coordinator['key']}",
        f"             certified until {coordinator['valid_until']}; renews by itself",
        f"issuer       valid until {issuer['valid_until']}",
        f"             renew it before {issuer['renew_before']}:",
        "             fedfactory consortium rotate --issuer --root-key FILE",
    ]
    for number, root in enumerate(told["roots"]):
        kind = "root" if number == 0 else "old root"
        lines += [
            f"{kind:<12} {root['fingerprint']}",
            f"             valid from {root['valid_from']} until {root['valid_until']}",
            f"             certificates under it: {len(root['holders'])}",
        ]
    if len(told["roots"]) > 1:
        waiting = [f"{h['role']} {h['name']} (until {h['until']})" for h in told["waiting"]]
        lines += ["still on the old root:", *(f"  {one}" for one in waiting)]
        if not waiting:
            lines[-1] = "nobody is on the old root: fedfactory consortium rotate --finish"
    return lines + [f"! {warning}" for warning in told["warnings"]]


def _open_root(path: Path, passphrase_file: Path | None) -> Root:
    from fedfactory.identity.root import Root

    if not path.exists():
        raise UsageError(f"the root key {path} is not there")
    root = Root.open(path, present_passphrase(passphrase_file, f"passphrase of {path}"))
    if root.note:
        say(root.note)
    return root


def _check_new_passphrase(asked: argparse.Namespace) -> None:
    if asked.new_root_key is None and (asked.new_passphrase_file or asked.generate_passphrase):
        raise UsageError("--new-passphrase-file and --generate-passphrase need --new-root-key FILE")


def _parser() -> Arguments:
    parser = Arguments(
        prog="fedfactory consortium",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_init(actions)
    rotate = actions.add_parser("rotate", help="follow the old root by a new one, with an overlap")
    rotate.set_defaults(action=_rotate)
    _add_home(rotate)
    rotate.add_argument("--root-key", type=Path, metavar="FILE", help="the present root's key")
    rotate.add_argument("--new-root-key", type=Path, metavar="FILE", help="where the next one goes")
    _add_passphrase(rotate)
    rotate.add_argument(
        "--new-passphrase-file",
        type=Path,
        metavar="FILE",
        help="the same for the new root's key (default: as the present one's)",
    )
    _add_generate(rotate, "--new-passphrase-file")
    which = rotate.add_mutually_exclusive_group()
    which.add_argument("--issuer", action="store_true", help="a new issuer under the present root")
    which.add_argument("--finish", action="store_true", help="let the old root count no more")
    show = actions.add_parser("show", help="fingerprints, validity, who rests on which root")
    show.set_defaults(action=_show)
    _add_home(show)
    invite = actions.add_parser("invite", help="an operator, when none can")
    invite.set_defaults(action=_invite)
    _add_home(invite)
    invite.add_argument("name", metavar="NAME", help="the operator's name")
    invite.add_argument("--out", type=Path, required=True, metavar="FILE", help="the invitation")
    for action in actions.choices.values():
        add_forms(action)
    return parser


def _add_init(actions: Any) -> None:
    init = actions.add_parser("init", help="found a consortium")
    init.set_defaults(action=_init)
    init.add_argument(
        "--home", type=Path, required=True, metavar="DIR", help="the coordinator's home, to be made"
    )
    init.add_argument(
        "--root-key", type=Path, required=True, metavar="FILE", help="where the root's key goes"
    )
    init.add_argument("--name", required=True, help="the consortium's, in certificates and plans")
    init.add_argument(
        "--gateway", required=True, metavar="HOST:PORT", help="how members reach the gateway"
    )
    init.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name or address of the gateway's host; may be repeated",
    )
    init.add_argument("--operator", default="lead", metavar="NAME", help="default: lead")
    init.add_argument(
        "--operator-folder",
        type=Path,
        metavar="DIR",
        help="what --as names later (default: ~/.config/fedfactory)",
    )
    _add_passphrase(init)
    _add_generate(init, "--passphrase-file")


def _add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the coordinator's home (default: this folder)",
    )


def _add_passphrase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="read the passphrase from its first line instead of asking",
    )


def _add_generate(parser: argparse.ArgumentParser, flag: str) -> None:
    parser.add_argument(
        "--generate-passphrase",
        action="store_true",
        help=f"make the new key's passphrase: shown once here, or written to {flag}, a new file",
    )

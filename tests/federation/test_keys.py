"""Keys that change under the real daemons: an operator is revoked, the root is rotated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from fedfactory.coordinator.running.journal import JOURNAL, read_events
from site_agents.cli.audit import main as audit
from site_agents.revocations import kept_revocations
from site_agents.status import read_status
from tests.federation.consortium import Consortium
from tests.federation.homes import make_share

pytestmark = pytest.mark.federation
SITES = ("cesga", "lumi")
RUN = (
    *("task=digits", "partition=iid", "local_epochs=1", "seed=5", "evaluate=false"),
    *("rounds.quorum=1", "rounds=400"),
)
BOTH = f"federation.sites=[{','.join(SITES)}]"


@contextmanager
def consortium_at(folder: Path, *settings: str) -> Iterator[Consortium]:
    consortium = Consortium(folder)
    try:
        consortium.found(*settings)
        yield consortium
    finally:
        orphans = consortium.close()
    assert orphans == []
    for home in consortium.sites.values():
        assert audit(["verify", "--home", str(home)]) == 0


def settle(consortium: Consortium, *sites: str) -> None:
    for site in sites:
        consortium.settle(site, lambda home, invited: make_share(home, invited, (*RUN, BOTH)))
    consortium.wait_for_sites()


def revoked_at(consortium: Consortium, site: str) -> list[str]:
    return [kept.operator for kept in kept_revocations(consortium.sites[site])]


def outcomes(consortium: Consortium, site: str) -> list[str]:
    status = read_status(consortium.sites[site])
    return [done.outcome for done in status.done] if status else [""]


def test_a_revoked_operators_run_is_refused_and_they_stay_revoked(tmp_path: Path) -> None:
    """One site is connected, one is away meanwhile; coordinator and agent start again."""
    with consortium_at(tmp_path) as consortium:
        invitation, bob = tmp_path / "bob.invitation", tmp_path / "bob"
        consortium.fedfactory("invite", "bob", "--role", "operator", "--out", str(invitation))
        consortium.fedfactory("enrol", str(invitation), "--as", str(bob))
        whoami = consortium.fedfactory("whoami", "--as", str(bob), "-q").stdout.strip()
        settle(consortium, *SITES)
        for home in consortium.sites.values():
            assert whoami in (home / "policy.yaml").read_text()
        obeyed = [word for word in RUN if not word.startswith("partition")]
        words = ("run", *obeyed, "federation.sites=[cesga]", "--as", str(bob), "--detach", "--json")
        done = consortium.fedfactory(*words)
        run_id = json.loads(done.stdout)["run_id"]
        journal = consortium.home / "runs" / run_id / JOURNAL

        def has_update() -> bool:
            return journal.exists() and any("ReplyAccepted" in e for _, e in read_events(journal))

        consortium.wait_for(60, has_update, "an update")
        consortium.wires["lumi"].cut()
        told = consortium.fedfactory("revoke", "bob", "--role", "operator", "--reason", "has left")
        assert "operator 'bob' is cut off" in told.stdout
        consortium.wait_for(30, lambda: revoked_at(consortium, "cesga") == ["bob"], "the word")
        consortium.wait_for(
            60, lambda: outcomes(consortium, "cesga")[0] == "not_authorised", "the refusal"
        )
        assert "update" in outcomes(consortium, "cesga")  # of the same run, before
        consortium.wait_for(60, lambda: consortium.ended(run_id), "the end of the run")
        assert consortium.summary(run_id)["status"] == "failed"
        assert consortium.fedfactory("runs", "--as", str(bob), code=None).returncode != 0

        coordinator, agent = consortium.daemons["coordinator"], consortium.daemons["cesga"]
        for daemon in (coordinator, agent):
            daemon.end()
            daemon.keep()
        consortium.wires["lumi"].mend()  # told by a coordinator that was started since
        consortium.wait_for(60, lambda: revoked_at(consortium, "lumi") == ["bob"], "the word")
        assert revoked_at(consortium, "cesga") == ["bob"]
        consortium.wait_for_sites()
        for home in consortium.sites.values():
            shown = consortium.command("site-agent", "audit", "show", "--home", str(home)).stdout
            assert shown.count("operator_revoked") == 1
            # What is pinned stays the administrator's to write.
            assert whoami in (home / "policy.yaml").read_text()


def roots_of(site: Path) -> int:
    bundle = (site / "identity" / "authority.pem").read_bytes()
    return len(x509.load_pem_x509_certificates(bundle))


def test_a_rotation_is_followed_by_running_daemons(tmp_path: Path) -> None:
    """A site trusts the new root by its cross certificate, then the new root alone."""
    with consortium_at(tmp_path, "certificate_days=0.0006") as consortium:  # 52 s, renewed after 35
        settle(consortium, "cesga")
        site, words = consortium.sites["cesga"], ("--home", str(consortium.home))
        key = (site / "identity" / "tls.key").read_bytes()
        rotate = ("consortium", "rotate", *words)
        consortium.fedfactory(
            *(*rotate, "--root-key", "root.key", "--new-root-key", "root-2.key"),
            *("--passphrase-file", "passphrase"),
        )
        consortium.fedfactory("consortium", "invite", "cy", *words, "--out", "cy.invitation")
        consortium.fedfactory("enrol", "cy.invitation", "--as", "cy")
        refused = consortium.fedfactory(*rotate, "--finish", code=5)
        assert "operator 'lead'" in refused.stderr  # whose certificate of 30 days is not due yet
        gone = ("revoke", "lead", "--role", "operator", "--reason", "moves on")
        consortium.fedfactory(*gone, "--as", "cy")
        consortium.wait_for(90, lambda: roots_of(site) == 2, "both roots")

        def is_finished() -> bool:
            consortium.fedfactory("sites", "--as", "cy")
            return consortium.fedfactory(*rotate, "--finish", code=None).returncode == 0

        consortium.wait_for(120, is_finished, "the end of the rotation")
        consortium.wait_for(90, lambda: roots_of(site) == 1, "the new root alone")
        shown = json.loads(consortium.fedfactory("consortium", "show", *words, "--json").stdout)
        assert len(shown["roots"]) == 1
        assert (site / "identity" / "tls.key").read_bytes() == key
        told = json.loads(consortium.fedfactory("sites", "--as", "cy", "--json").stdout)
        assert [m["status"] for m in told["members"] if m["name"] == "cesga"] == ["enrolled"]

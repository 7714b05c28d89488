"""Homes of sites for a consortium of the tests: their share of bundled data, a policy that fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedfactory.cli.composing import compose_run
from fedfactory.config import RunConfig, run_config
from fedfactory.local.plan import SOURCE, check_shares, data_options, site_policy
from fedfactory.wire.membership import Invitation
from site_agents.setup import make_home


def composed(words: Sequence[str]) -> RunConfig:
    return run_config(compose_run(words).values, "")


def make_share(home: Path, invitation: Invitation, words: Sequence[str]) -> None:
    """Make the home of the site that is invited, with its share of what the run `words` reads."""
    config = composed(words)
    make_home(
        home,
        site=invitation.name,
        gateway_address=invitation.gateway,
        data={SOURCE: data_options(config, invitation.name)},
        policy_text=site_policy(config, check_shares(config).get(invitation.name), invitation),
        worker={"executor": config.executor_name},
        invitation=invitation,
    )

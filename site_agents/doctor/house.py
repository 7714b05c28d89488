"""What lies at the site: versions, files and their rights, disk, books, policy, data, worker."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError, ProtocolError
from fedfactory.lease import holder_of
from site_agents import control
from site_agents.assembly import open_books, sources_of
from site_agents.config import AGENT_FILE, POLICY_FILE, AgentConfig
from site_agents.doctor.finding import Finding, fail, ok, warn
from site_agents.executors.executor import JobTimeoutError, WorkerLostError
from site_agents.executors.isolation import isolation_of
from site_agents.executors.warm_worker import WarmWorker
from site_agents.failures import broken_failures, read_failures
from site_agents.home_check import home_faults
from site_agents.jobs.settings import WorkerSettings
from site_agents.policy import Policy
from site_agents.policy_check import OPEN_LINEAGE, delta_misfits, task_misfits
from site_agents.policy_file import load_policy

PACKAGES: Final = ("fedfactory", "grpcio", "torch", "opacus", "dp-accounting")
# A model that came, one that is made, and the job folders that the pipeline keeps.
MODELS_ON_DISK: Final = 6
LEAST_DISK_BYTES: Final = 256 * 1024 * 1024
GB: Final = 1e9


def examine_versions() -> Iterator[Finding]:
    """Look at what is installed; imports nothing of it."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            yield fail("versions", f"{package} is not installed", "install fedfactory anew")
    yield ok("versions", ", ".join(found))


def examine_home(config: AgentConfig) -> Iterator[Finding]:
    """Look at the home's owner and rights, its holder, and what the administrator told it."""
    if os.geteuid() == 0:
        yield warn("home", "this is root", "run the agent as an ordinary user of its own")
    for found in home_faults(config):
        yield fail("home", found, "do as it says, and find out who did; the agent does not start")
    open_files = [
        path.name
        for path in (config.home, config.home / "identity", config.home / AGENT_FILE)
        if path.exists() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]
    if open_files:
        names = ", ".join(open_files)
        yield warn("home", f"others may look into {names}", f"chmod -R go= {config.home}")
    else:
        yield ok("home", f"{config.home}, {_owner(config.home)}'s alone")
    if not os.access(config.home, os.W_OK):
        yield fail("home", f"{config.home} cannot be written", "check its owner and its mount")
    holder = holder_of(config.home, "agent")
    if holder is not None:
        yield ok("agent", f"runs ({holder.mode}, process {holder.pid} on {holder.host})")
    word = control.state(config.home)
    if word.name != "running":
        yield warn("agent", f"{word.name} by {word.by}: {word.reason}", "site-agent resume")
    try:
        failures = read_failures(config.home).lines()
    except (OSError, ProtocolError):
        failures = (broken_failures(config.home),)
    for line in failures:
        yield warn("failures", line, "read the end of logs/worker.log, then: site-agent resume")


def examine_policy(config: AgentConfig) -> tuple[Policy | None, list[Finding]]:
    """Read the policy; hold its names against agent.yaml's and the installed tasks'."""
    try:
        policy = load_policy(config.home / POLICY_FILE)
    except FedfactoryError as error:
        todo = "do as it says, or mend the line it names; until then the agent takes no work"
        return None, [fail("policy", str(error), todo)]
    found = []
    for name in sorted(set(policy.data) - set(config.data)):
        text = f"data '{name}' is in {POLICY_FILE} and not in {AGENT_FILE}"
        found.append(fail("policy", text, f"name its kind and place in {AGENT_FILE}"))
    for name in sorted(set(config.data) - set(policy.data)):
        text = f"data '{name}' is in {AGENT_FILE} and not in {POLICY_FILE}: nothing may use it"
        found.append(warn("policy", text, f"give its lineage and public_size in {POLICY_FILE}"))
    todo = f"mend it in {POLICY_FILE}, then: site-agent policy check"
    found += [fail("policy", text, todo) for text in task_misfits(policy)]
    for what in ("coordinators", "operators", "tasks"):
        if not getattr(policy, what):
            text = f"{what}: none, so every order is refused"
            found.append(warn("policy", text, f"add to {what} in {POLICY_FILE}"))
    dp = "may be left out" if policy.without_dp else "is required"
    tasks = ", ".join(policy.tasks) or "no task"
    return policy, [*found, ok("policy", f"holds: {tasks}; differential privacy {dp}")]


def examine_disk(config: AgentConfig, policy: Policy | None) -> Iterator[Finding]:
    """Look at the room for models."""
    free = shutil.disk_usage(config.home).free
    need = MODELS_ON_DISK * policy.max_model_bytes if policy else LEAST_DISK_BYTES
    text = f"{free / GB:.1f} GB free at {config.home}"
    if free < LEAST_DISK_BYTES:
        yield fail("disk", text, "make room: with a full disk the ledger refuses to work")
    elif free < need:
        yield warn(
            "disk",
            f"{text}; models as large as the policy allows need {need / GB:.1f} GB",
            f"make room, or lower limits.max_model_bytes in {POLICY_FILE}",
        )
    else:
        yield ok("disk", text)


def examine_books(config: AgentConfig, policy: Policy | None) -> Iterator[Finding]:
    """Verify ledger and audit chain, hold both against second place and the policy's lineages."""
    try:
        books = open_books(config)
    except FedfactoryError as error:
        yield fail("books", f"{error} {error.diagnostic or ''}".strip(), _BOOKS_TODO)
        return
    try:
        books.check(None)
        anchor = books.anchor()
        yield ok(
            "books",
            f"ledger of {anchor.ledger_sequence} entries, audit chain of {anchor.audit_length}",
        )
        for name, said in books.unbounded().items():
            todo = "docs/privacy.md, 'Releases without differential privacy', says what still holds"
            yield warn("books", f"lineage '{name}': {said}", todo)
        for text in delta_misfits(policy, books.deltas) if policy else ():
            yield fail("policy", text, f"mend it in {POLICY_FILE}, then: site-agent policy check")
        for name, rule in policy.data.items() if policy else ():
            if not books.has_budget(rule.lineage):
                text = f"lineage '{rule.lineage}' of data '{name}' has no budget in the ledger"
                yield fail("books", text, OPEN_LINEAGE)
    except FedfactoryError as error:
        yield fail("books", str(error), _BOOKS_TODO)
    finally:
        books.close()
    if config.second_place is None:
        yield _no_second_place(config, policy)


def _no_second_place(config: AgentConfig, policy: Policy | None) -> Finding:
    """Judge books without a second place: nobody notices a rollback that the coordinator hides."""
    text = "no second place: a copy of the home put back is noticed by the coordinator alone"
    todo = f"name a file on another file system, or syslog, as second_place in {AGENT_FILE}"
    if (why := config.without_second_place) is not None:
        return warn("books", f"{text}; acknowledged: {why}", todo)
    if policy is not None and not policy.dp_required:
        return warn("books", text, todo)
    return fail("books", text, f"{todo}; or say there why there is none, as without_second_place")


def examine_data(config: AgentConfig) -> Iterator[Finding]:
    """Open each source that the policy names and name its version."""
    from site_agents.executors.inspecting import inspect

    try:
        sources = sources_of(config)()
    except FedfactoryError:
        return  # the policy's own line says it
    for name, source in sources.items():
        began = time.monotonic()
        todo = f"site-agent data check {name} tells more"
        try:
            found = inspect(config, name, source.lineage, overlaps=True)
        except FedfactoryError as error:
            yield fail("data", f"{name}: {error}", todo)
        else:
            took = f"{found.version.bytes / GB:.3g} GB read in {time.monotonic() - began:.1f} s"
            note = f", not held against other lineages ({found.unknown})" if found.unknown else ""
            text = f"{name}: version {found.version.fingerprint[:19]}, {took}{note}; {todo}"
            yield ok("data", text)
            same = f"name one lineage in {POLICY_FILE}"
            yield from (fail("data", f"{name}: {one}", same) for one in found.overlaps or ())


def examine_worker(config: AgentConfig) -> Iterator[Finding]:
    """Say how workers are kept off the network; start one, without data, and end it."""
    try:
        isolation = isolation_of(config.worker.network)
    except EnvironmentFailedError as error:
        yield fail("worker", str(error), "until then the agent does not start")
        return
    text = f"network {isolation.sentence}"
    if isolation.mechanism == "none":
        todo = "see docs/site-administrator.md, 'Network of the workers'"
        yield warn("worker", text, todo)
    else:
        yield ok("worker", text)
    settings = WorkerSettings(
        site=config.site, sources={}, threads=config.worker.threads, device="cpu"
    )
    log = config.home / "logs" / "worker.log"
    worker = WarmWorker(settings, network=config.worker.network, log=log)
    began = time.monotonic()
    try:
        worker.wait_ready()
    except (OSError, WorkerLostError, JobTimeoutError) as error:
        yield fail("worker", f"does not start: {error}", f"read the end of {log}")
    else:
        yield ok("worker", f"starts in {time.monotonic() - began:.1f} s")
    finally:
        worker.close()


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a user without a name, as in some containers
        return f"user {path.stat().st_uid}"


_BOOKS_TODO: Final = (
    "make no new ledger or audit chain: docs/site-administrator.md, 'When the books do not hold'"
)

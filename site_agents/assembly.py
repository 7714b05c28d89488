"""Puts a site's parts together as its configuration says: books, executor, pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedfactory.contracts.errors import FedfactoryError
from site_agents.audit import AuditChain
from site_agents.books import Books
from site_agents.config import POLICY_FILE, AgentConfig
from site_agents.executors.executor import Executor
from site_agents.executors.table import make_executor
from site_agents.jobs.settings import SourceOptions
from site_agents.ledger import Ledger
from site_agents.pipeline import Pipeline, Transfer
from site_agents.policy_file import load_policy
from site_agents.questions import Questions
from site_agents.receipt_file import ReceiptFile
from site_agents.second_place import SecondPlace


def open_books(config: AgentConfig) -> Books:
    """Open and verify the site's books.

    Raises:
        LedgerError, IntegrityError: a book is missing, altered, copied or rolled back.
        UsageError: the ledger lies on a network file system.
    """
    ledger = Ledger.open(config.ledger)
    try:
        audit = AuditChain.open(config.home / "audit")
    except FedfactoryError:
        ledger.close()
        raise
    receipts = ReceiptFile(config.home)
    return Books(config.site, ledger, audit, receipts, SecondPlace(config.second_place))


def sources_of(config: AgentConfig) -> Callable[[], Mapping[str, SourceOptions]]:
    """Return what says which data a worker may open now: what both files of the home name."""

    def sources() -> Mapping[str, SourceOptions]:
        rules = load_policy(config.home / POLICY_FILE).data
        return {
            name: SourceOptions(options=options, lineage=rules[name].lineage, unit=rules[name].unit)
            for name, options in config.data.items()
            if name in rules
        }

    return sources


def build_executor(config: AgentConfig) -> Executor:
    """Return the site's executor, not yet started; its log is HOME/logs/worker.log."""
    return make_executor(config, sources_of(config), log=config.home / "logs" / "worker.log")


def build_pipeline(
    config: AgentConfig, books: Books, executor: Executor, transfer: Transfer
) -> Pipeline:
    """Return the way of an order through this site."""
    return Pipeline(
        site=config.site,
        home=config.home,
        books=books,
        executor=executor,
        transfer=transfer,
        timeout_s=config.worker.timeout_s,
        sources=frozenset(config.data),
    )


def build_questions(config: AgentConfig, books: Books, executor: Executor) -> Questions:
    """Return who answers a coordinator's questions at this site."""
    return Questions(
        site=config.site,
        home=config.home,
        books=books,
        executor=executor,
        sources=frozenset(config.data),
    )

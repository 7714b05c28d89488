"""The journal under any sequence of commits, any kill, any damage."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.errors import EnvironmentFailedError, IntegrityError
from fedfactory.coordinator.running.journal import Journal, read_events
from fedfactory.rounds.events import AggregationFailed, MetricsAggregated, OrdersSent, SiteConnected

WHEN = st.floats(min_value=0, max_value=1e10)
EVENTS = st.one_of(
    st.builds(SiteConnected, at=WHEN, site=st.text(max_size=20)),
    st.builds(
        OrdersSent,
        at=WHEN,
        round=st.integers(1, 1000),
        kind=st.sampled_from(["train", "evaluate"]),
        sites=st.lists(st.text(max_size=8), max_size=40).map(tuple),
    ),
    st.builds(
        MetricsAggregated,
        at=WHEN,
        round=st.integers(1, 9),
        metrics=st.dictionaries(st.text(max_size=5), WHEN, max_size=3),
    ),
    # now and then one that spans pages
    st.builds(
        AggregationFailed,
        at=WHEN,
        round=st.integers(1, 9),
        reason=st.integers(0, 30_000).map(lambda n: "x" * n),
    ),
)
COMMITS = st.lists(st.lists(EVENTS, max_size=6), max_size=12)


def _files(path):
    wal = path.with_name(f"{path.name}-wal")
    return path.read_bytes(), wal.read_bytes() if wal.exists() else b""


def _lay(folder, main, wal):
    path = Path(folder) / "journal.sqlite"
    path.write_bytes(main)
    path.with_name("journal.sqlite-wal").write_bytes(wal)
    return path


def _torn(before, after, at):
    """A file while it is rewritten from the front: `at` bytes of the new, the rest as it was."""
    return after[:at] + before[at:]


@given(commits=COMMITS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_kill_at_any_byte_leaves_whole_commits(commits, data):
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        path = Path(folder) / "journal.sqlite"
        with Journal.open(path) as journal:
            done = []
            cut = data.draw(st.integers(0, max(0, len(commits) - 1)), label="during commit")
            for commit in commits[:cut]:
                journal.append(commit)
                done += commit
            before = _files(path)
            during = commits[cut] if cut < len(commits) else []
            journal.append(during)
            after = _files(path)
        assert before[0] == after[0]  # a commit writes to the log alone
        at = data.draw(st.integers(0, len(after[1])), label="killed at byte")
        found = _lay(other, after[0], _torn(before[1], after[1], at))
        read = len(read_events(found))
        with Journal.open(found) as journal:
            events = journal.events()
            assert len(events) == read
            assert events in (done, done + during)
            assert at < len(after[1]) or events == done + during
            journal.append([SiteConnected(at=1.0, site="again")])
            assert journal.events() == [*events, SiteConnected(at=1.0, site="again")]


@given(commits=COMMITS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_kill_while_the_log_is_folded_in_loses_nothing(commits, data):
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        path = Path(folder) / "journal.sqlite"
        with Journal.open(path) as journal:
            for commit in commits:
                journal.append(commit)
            before = _files(path)
        after = _files(path)  # closing folds the log into the file
        at = data.draw(st.integers(0, len(after[0])), label="killed at byte")
        found = _lay(other, _torn(before[0], after[0], at), before[1])
        with Journal.open(found) as journal:
            assert journal.events() == [event for commit in commits for event in commit]


@given(commits=COMMITS, data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_are_told_or_read_never_a_crash(commits, data):
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        path = Path(folder) / "journal.sqlite"
        with Journal.open(path) as journal:
            for commit in commits:
                journal.append(commit)
            main, wal = _files(path)
            main = main if data.draw(st.booleans(), label="with log") else b""
        if not main:
            main, wal = _files(path)
        pieces = [bytearray(main), bytearray(wal)]
        for _ in range(data.draw(st.integers(1, 8), label="damages")):
            piece = pieces[data.draw(st.integers(0, 1))]
            if piece:
                start = data.draw(st.integers(0, len(piece) - 1))
                new = data.draw(st.binary(max_size=40))
                piece[start : start + data.draw(st.integers(0, 40))] = new
        found = _lay(other, bytes(pieces[0]), bytes(pieces[1]))
        told = (IntegrityError, EnvironmentFailedError)
        try:
            rows = read_events(found)
            assert all(isinstance(line, str) for _, line in rows)
        except told:
            pass
        try:
            with Journal.open(found) as journal:
                assert len(journal.events()) == len(journal)
        except told:
            pass

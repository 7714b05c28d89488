from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.sites.rig import Coordinator, Site


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def make_site(tmp_path: Path, coordinator: Coordinator) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**policy: Any) -> Site:
        folder = tmp_path / f"site-{len(made)}"
        folder.mkdir()
        made.append(Site(folder, coordinator, **policy))
        return made[-1]

    yield make
    for site in made:
        assert site.steps_spent() >= 0
        site.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """What a test starts ends with it."""
    before = set(threading.enumerate())
    yield
    until(
        lambda: not set(threading.enumerate()) - before,
        story=lambda: str([thread.name for thread in set(threading.enumerate()) - before]),
    )

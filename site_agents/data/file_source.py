"""What sources of one file share: its version is its bytes."""

from __future__ import annotations

from pathlib import Path

from site_agents.data.files import Stamp, stamp_of_file, version_of_file
from site_agents.data.source import Source
from site_agents.data.versions import Version


class FileSource(Source):
    """A source whose `read_options` sets `path`."""

    path: Path

    @property
    def where(self) -> str:
        """See Source."""
        return str(self.path)

    def version(self) -> Version:
        """See Source."""
        return version_of_file(self.path)

    def stamp(self) -> Stamp:
        """See Source."""
        return stamp_of_file(self.path)

"""The kinds of source there are. A new one is one file and one line here, or an entry point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedfactory.contracts.errors import EnvironmentFailedError, UsageError
from fedfactory.contracts.plugins import PluginTable
from site_agents.data.source import Source

SOURCES: Final = PluginTable(
    kind="kind of data source",
    group="fedfactory.data",
    own={
        "csv": "site_agents.data.csv_file:Csv",
        "images": "site_agents.data.images:Images",
        "npz": "site_agents.data.npz:Npz",
        "partition": "site_agents.data.local_share:LocalShare",
        "parquet": "site_agents.data.parquet:Parquet",
        "python": "site_agents.data.python_dataset:PythonDataset",
    },
)


def open_source(name: str, options: Mapping[str, Any], lineage: str) -> Source:
    """Return the source of that name in a site's configuration; nothing is read yet.

    Raises:
        UsageError: an unknown kind, or options that do not fit it.
        EnvironmentFailedError: an installed plug-in is broken, or claims a name twice.
    """
    kind = options.get("kind")
    if not isinstance(kind, str):
        raise UsageError(f"data.{name}.kind: expected one of {', '.join(SOURCES.names())}")
    source = SOURCES.load(kind)(name, options, lineage)
    if not isinstance(source, Source):
        raise EnvironmentFailedError(
            f"data '{name}': kind '{kind}' is a {type(source).__name__},"
            " not a site_agents.data.source.Source"
        )
    return source

"""`fedfactory logs RUN SITE`: what a site lets out of its record of a run."""

from __future__ import annotations

from collections.abc import Sequence

from fedfactory.cli.completers import completed, known_sites
from fedfactory.cli.forms import print_json
from fedfactory.cli.operating import add_run, connected, meant_run, operating
from fedfactory.contracts.errors import RefusedError, UnknownNameError


def run(words: Sequence[str]) -> int:
    """Print the site's lines; return 0, or 5 if it gave none out."""
    parser = operating(
        "logs",
        "Ask a site for its record of a run. It answers with outcomes and times, never with text"
        " of its own, and only if its policy says `logs: outcomes`.",
    )
    add_run(parser)
    completed(parser.add_argument("site", metavar="SITE"), known_sites)
    asked = parser.parse_args(words)
    with connected(asked) as client:
        row = meant_run(client, asked.run)
        run_id = row.run_id
        if asked.site not in row.sites:
            raise UnknownNameError("site of this run", asked.site, row.sites)
        logs = client.logs(run_id, asked.site)
    from fedfactory.operator.telling import log_lines

    if asked.json:
        from fedfactory.contracts.codec import encode

        whole = encode(logs) if logs is not None else {"status": "no_answer", "lines": []}
        print_json({"run_id": run_id, "site": asked.site, **whole})
    elif logs is not None and logs.status == "let_out":
        lines = log_lines(logs, asked.site)
        print("\n".join(lines[1:] if asked.quiet else lines))
    if logs is None or logs.status != "let_out":
        raise RefusedError(log_lines(logs, asked.site)[0])
    return 0

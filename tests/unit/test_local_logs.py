"""What `fedfactory local` keeps of its processes' logs when the workspace goes."""

from __future__ import annotations

from pathlib import Path

from fedfactory.local.run import _keep_logs


def test_every_processs_log_is_kept_also_what_a_runs_process_said_before_its_log(
    tmp_path: Path,
) -> None:
    workspace, folder = tmp_path / "workspace", tmp_path / "run"
    run = workspace / "coordinator" / "runs" / "20261201-1"
    written = {
        workspace / "coordinator" / "logs" / "coordinator.log": "coordinator/coordinator.log",
        workspace / "cesga" / "logs" / "agent.log": "cesga/agent.log",
        run / "serverapp.log": "run/serverapp.log",
        run / "serverapp.log.1": "run/serverapp.log.1",
        run / "process.err": "run/process.err",
    }
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    _keep_logs(workspace, folder)
    kept = {
        str(path.relative_to(folder / "logs"))
        for path in (folder / "logs").rglob("*")
        if path.is_file()
    }
    assert kept == set(written.values())

"""docs/nginx: the gateway behind nginx as TLS pass-through. Skipped where nginx is not installed."""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from fedfactory.wire.membership import MembersRequest
from fedfactory.wire.rpc.service import OperationsCalls
from fedfactory.wire.rpc.transfers import Transfers
from fedfactory.wire.tls import open_channel
from tests.federation.consortium import free_port
from tests.federation.coordinator_rig import Rig
from tests.patience import HANG_S
from tests.unit import coordinator_submissions as forms

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "nginx" / "fedfactory-stream.conf"
NGINX = os.environ.get("NGINX") or shutil.which("nginx") or "/usr/sbin/nginx"
MODULES = (
    Path(NGINX).parents[1] / "lib" / "nginx" / "modules",
    Path("/usr/lib/nginx/modules"),
)
STREAM = next(
    (m / "ngx_stream_module.so" for m in MODULES if (m / "ngx_stream_module.so").exists()), None
)

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(
        not Path(NGINX).exists() or STREAM is None, reason="nginx with its stream module: not here"
    ),
]


@contextmanager
def nginx(folder, gateway_port):
    """Run the example as it stands, but for names and ports; yield the port that it listens on."""
    port = free_port()
    text = EXAMPLE.read_text()
    for old, new in (
        ("gateway.example.org 127.0.0.1:9443", f"localhost 127.0.0.1:{gateway_port}"),
        ("127.0.0.1:8443", f"127.0.0.1:{free_port()}"),
        ("listen 443;", f"listen 127.0.0.1:{port};"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    config = folder / "nginx.conf"
    config.write_text(
        f"load_module {STREAM};\ndaemon off;\npid {folder}/nginx.pid;\nevents {{}}\n"
        f"error_log {folder}/error.log;\n{text}"
    )
    process = subprocess.Popen(
        [NGINX, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(config)]
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(HANG_S)


def test_operators_and_sites_reach_the_gateway_through_nginx(tmp_path):
    rig = Rig(tmp_path)
    rig.start()
    try:
        with nginx(tmp_path, int(rig.address.rpartition(":")[2])) as port:
            with open_channel(f"localhost:{port}", rig.lead.identity) as channel:
                grpc.channel_ready_future(channel).result(HANG_S)
                members = OperationsCalls(channel).list_members(MembersRequest(), timeout=HANG_S)
                assert members.consortium == rig.lead.consortium
                ref = forms.model(tmp_path / "model.safetensors")
                Transfers(channel).upload(tmp_path / "model.safetensors", ref)
            # Another name goes elsewhere: nothing of ours answers it.
            with open_channel(f"127.0.0.1:{port}", rig.lead.identity) as stranger:
                time.sleep(0.1)
                with pytest.raises(grpc.FutureTimeoutError):
                    grpc.channel_ready_future(stranger).result(2)
    finally:
        left = rig.close()
    assert left == []

"""A real consortium on this machine, in folders of its people's, founded and run by commands.

The coordinator and every agent are processes that this harness keeps alive, as systemd would. Each
site reaches the gateway through a wire of its own, which can be cut.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from fedfactory.contracts.errors import UnreachableError
from fedfactory.identity.operators import load_operator
from fedfactory.operator.client import OperatorClient
from fedfactory.wire.membership import Invitation
from tests.owned_processes import end_left, find, owned, token
from tests.patience import HANG_S, until

NAME = "alliance"
LEAD = "lead"
INVITED_S = 3600.0


def free_port() -> int:
    """Return a port for a listener that may come back; outgoing connections never take it."""
    with closing(socket.socket()) as probe:
        while True:
            port = random.SystemRandom().randrange(20_000, 32_000)  # below the ephemeral ports
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


class Wire:
    """A TCP relay to a port, until `close`.

    `cut` ends its connections, and new ones fail until `mend`; `hush` lets nothing through until
    `mend`, and neither end is told.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._whole = threading.Event()
        self._whole.set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        self._whole.clear()
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def hush(self) -> None:
        self._flowing.clear()

    def mend(self) -> None:
        self._whole.set()
        self._flowing.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # closing alone leaves `accept` waiting
        self._accepting.join()
        self._listener.close()
        self.cut()
        self._flowing.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self._whole.is_set():
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                    far.settimeout(None)
                except OSError:
                    near.close()
                    continue
                with self._lock:
                    self._ends |= {near, far}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                self._flowing.wait()
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._ends -= {one, other}
        one.close()


class Daemon:
    """A process that is started again when it ends, until it is let go."""

    def __init__(self, name: str, words: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.words = list(words)
        self.log = log
        self.env = {**os.environ, **env}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.env,
                start_new_session=True,
            )

    def keep(self) -> None:
        """Start it again if it ended."""
        if self.process.poll() is not None:
            self.process = self._start()

    def end(self) -> int:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            return self.process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Consortium:
    """`lead` is the operator's folder, `home` the coordinator's, `sites` those of the agents."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.home = folder / "coordinator"
        self.lead = folder / "lead"
        self.sites: dict[str, Path] = {}
        self.daemons: dict[str, Daemon] = {}
        self.port = free_port()
        self.wires: dict[str, Wire] = {}
        self._env = {**token(folder), **(env or {})}

    # ---- commands ---------------------------------------------------------------------------

    def command(
        self, program: str, *words: str, code: int | None = 0, timeout: float = HANG_S
    ) -> subprocess.CompletedProcess[str]:
        """Run `fedfactory` or `site-agent`; `code` is the exit code to expect, None for any."""
        module = {"fedfactory": "fedfactory.cli.main", "site-agent": "site_agents.cli.main"}
        done = subprocess.run(
            [sys.executable, "-m", module[program], *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.folder,
            env={**os.environ, **self._env, "FEDFACTORY_OPERATOR": str(self.lead)},
        )
        assert code is None or done.returncode == code, (words, done.stdout, done.stderr)
        return done

    def fedfactory(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.command("fedfactory", *words, **options)

    def operator(self) -> OperatorClient:
        """Return a client with the lead's rights; the caller closes it."""
        return OperatorClient(load_operator(self.lead))

    # ---- making it --------------------------------------------------------------------------

    def found(self, *settings: str) -> None:
        """Make the authority and start the coordinator."""
        passphrase = self.folder / "passphrase"
        passphrase.write_text("correct horse battery staple\n")
        passphrase.chmod(0o600)
        self.fedfactory(
            *("consortium", "init", "--home", str(self.home), "--name", NAME),
            *("--root-key", str(self.folder / "root.key"), "--passphrase-file", str(passphrase)),
            *("--gateway", f"127.0.0.1:{self.port}", "--host", "localhost"),
            *("--operator", LEAD, "--operator-folder", str(self.lead)),
        )
        self._start(
            "coordinator",
            [
                *(sys.executable, "-m", "fedfactory.cli.main", "coordinator"),
                *("--home", str(self.home), *settings),
            ],
        )
        self.wait_for(60, (self.home / "gateway.json").exists, "the gateway")

    def settle(self, site: str, make_home: Callable[[Path, Invitation], None]) -> None:
        """Let `make_home` make a site's home with an invitation; start its agent, which enrols."""
        with self.operator() as client:
            invited = client.invite("site", site, INVITED_S)
        wire = self.wires[site] = Wire(self.port)
        home = self.sites[site] = self.folder / site
        make_home(home, replace(invited, gateway=f"127.0.0.1:{wire.port}"))
        self._start(
            site, [sys.executable, "-m", "site_agents.cli.main", "run", "--home", str(home)]
        )

    def wait_for_sites(self, timeout: float = 60) -> None:
        def connected() -> bool:
            with self.operator() as client, suppress(UnreachableError):
                members = client.members().members
                return {member.name for member in members if member.connected} >= set(self.sites)
            return False

        self.wait_for(timeout, connected, "the sites")

    def _start(self, name: str, words: Sequence[str]) -> None:
        log = self.folder / f"{name}.log"
        self.daemons[name] = Daemon(name, words, log, self._env)

    # ---- watching over it --------------------------------------------------------------------

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Start again whatever ends, as systemd would, until the block is left."""
        stop = threading.Event()

        def keep() -> None:
            while not stop.wait(0.2):
                for daemon in list(self.daemons.values()):
                    daemon.keep()

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            stop.set()
            keeper.join()

    def processes(self) -> list[psutil.Process]:
        """Every living process of this consortium."""
        return owned(self.folder)

    def find(self, *words: str) -> list[psutil.Process]:
        return find(self.processes(), *words)

    def wait_for(self, seconds: float, found: Callable[[], bool], what: str) -> None:
        until(found, seconds, lambda: f"{what} did not come\n{self.logs()}")

    def logs(self) -> str:
        told = [f"--- {log.name}\n{log.read_text()[-3000:]}" for log in self.folder.glob("*.log")]
        return "\n".join(told)

    # ---- runs --------------------------------------------------------------------------------

    def run(self, *words: str) -> str:
        """Submit a run and return its id."""
        # The words may be those of a local run, too: `run` refuses what real sites do not obey.
        local = ("partition", "federation=", "federation.count")
        obeyed = [word for word in words if not word.startswith(local)]
        done = self.fedfactory("run", *obeyed, "--detach", "--json")
        return str(json.loads(done.stdout)["run_id"])

    def row(self, run_id: str) -> dict[str, Any]:
        told = json.loads(self.fedfactory("runs", "--json").stdout)
        return next(row for row in told["runs"] if row["run_id"] == run_id)

    def summary(self, run_id: str) -> dict[str, Any]:
        return json.loads((self.home / "runs" / run_id / "summary.json").read_text())

    def ended(self, run_id: str) -> bool:
        return (self.home / "runs" / run_id / "summary.json").exists()

    def close(self) -> list[str]:
        """End everything; return the orphans: what does not end with the daemons."""
        for name in reversed(list(self.daemons)):
            self.daemons[name].end()
        for wire in self.wires.values():
            wire.close()
        return end_left(self.folder)

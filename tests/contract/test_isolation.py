"""What runs isolated reaches nothing outside, by either mechanism, and works inside.

Nothing here sends to an address that is not loopback's, save where no interface could carry it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.isolation.launching import isolated
from fedfactory.isolation.linux import landlock_version
from fedfactory.isolation.mechanism import Mechanism, Network, choose
from fedfactory.tasks.table import load_task
from fedfactory.testing.executors import SOURCE, job_of
from site_agents.cli.main import main
from site_agents.config import load_agent_config
from site_agents.doctor.house import examine_data, examine_worker
from site_agents.executors.isolation import isolation_of
from site_agents.executors.local import LocalExecutor
from site_agents.jobs.settings import SourceOptions
from site_agents.policy import DataRule, policy_text
from site_agents.setup import make_home

ORDINARY = 12345
CONFINED: tuple[Mechanism, ...] = ("namespaces", "seccomp")
# Everything is imported first: this Python may lie where an ordinary user cannot read.
ISOLATE = """
import ctypes, errno, glob, json, os, platform, selectors, signal, socket, stat, sys, time
from fedfactory.isolation.enforcing import isolate
mechanism, device, facts, user, groups = map(json.loads, sys.argv[1:])
if user is not None:
    os.setgroups(groups)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: as a process that was always this user's
isolate(mechanism, gpu=device == "gpu")
"""
# Tries every way out and prints, by name, "reached" or the error's name.
WAYS = """
def tcp(family, address):
    with socket.socket(family) as one:
        one.settimeout(5)
        one.connect(address)

def send(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", address)

def udp(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(address)
        one.send(b"x")
        time.sleep(0.1)
        one.send(b"x")  # refused, if the first found nobody

def pair_sends():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"x", facts["datagrams"])

def pair_connects():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.connect(facts["datagrams"])

ways = {
    "tcp": lambda: tcp(socket.AF_INET, ("127.0.0.1", facts["tcp"])),
    "tcp6": lambda: tcp(socket.AF_INET6, ("::1", facts["tcp6"])),
    "udp": lambda: udp(("127.0.0.1", facts["udp"])),
    "path": lambda: tcp(socket.AF_UNIX, facts["path"]),
    "abstract": lambda: tcp(socket.AF_UNIX, b"\\0" + facts["abstract"].encode()),
    "datagrams": lambda: send(socket.AF_UNIX, facts["datagrams"]),
    "pair_sends": pair_sends,
    "pair_connects": pair_connects,
}
if facts["world"]:  # only where no interface leads there
    ways["world"] = lambda: tcp(socket.AF_INET, ("192.0.2.1", 9))
    ways["world_udp"] = lambda: send(socket.AF_INET, ("192.0.2.1", 9))
found = {}
for name, way in ways.items():
    try:
        way()
        found[name] = "reached"
    except OSError as error:
        found[name] = errno.errorcode.get(error.errno, str(error))
print(json.dumps(found))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this machine may look into; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def host(open_folder: Path) -> Iterator[dict[str, Any]]:
    """Servers that listen on this machine, as an agent or another program might."""
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        tcp6 = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        path = stack.enter_context(socket.socket(socket.AF_UNIX))
        path.bind(str(open_folder / "s"))
        path.listen()
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0fedfactory-test-{os.getpid()}")
        abstract.listen()
        datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind(str(open_folder / "d"))
        for name in ("s", "d"):
            (open_folder / name).chmod(0o777)
        yield {
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "tcp6": tcp6.getsockname()[1],
            "path": str(open_folder / "s"),
            "abstract": f"fedfactory-test-{os.getpid()}",
            "datagrams": str(open_folder / "d"),
        }


def ask(
    code: str,
    mechanism: Mechanism,
    facts: object = None,
    *,
    gpu: bool = False,
    user: int | None = None,
    groups: tuple[int, ...] = (),
) -> Any:
    """Run code in a process isolated by one mechanism; return what it prints, as JSON."""
    words = (mechanism, "gpu" if gpu else "cpu", facts, user, groups)
    done = subprocess.run(
        [sys.executable, "-P", "-c", ISOLATE + code, *map(json.dumps, words)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.fixture(params=["self", "ordinary"])
def user(request: pytest.FixtureRequest) -> int | None:
    """This user, and an ordinary one where this is root."""
    if request.param == "self":
        return None
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user already")
    return ORDINARY


def test_without_isolation_every_server_of_the_host_is_reached(
    host: dict[str, Any], user: int | None
) -> None:
    found = ask(WAYS, "none", {**host, "world": False}, user=user)
    assert set(found.values()) == {"reached"}


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("mechanism", CONFINED)
@pytest.mark.rule("29")
def test_nothing_outside_is_reached(
    mechanism: Mechanism, host: dict[str, Any], user: int | None, *, gpu: bool
) -> None:
    found = ask(WAYS, mechanism, {**host, "world": True}, gpu=gpu, user=user)
    assert "reached" not in found.values(), found
    assert set(found.values()) <= {"EAFNOSUPPORT", "ENETUNREACH", "ECONNREFUSED"}


OWN_LOOPBACK = """
def both(family, address):
    with socket.create_server((address, 0), family=family) as server:
        with socket.socket(family) as client:
            client.connect(server.getsockname())
            client.sendall(b"x")
            with server.accept()[0] as heard:
                return heard.recv(1).decode()

print(json.dumps([both(socket.AF_INET, "127.0.0.1"), both(socket.AF_INET6, "::1")]))
"""


def test_namespaces_have_a_loopback_of_their_own(user: int | None) -> None:
    assert ask(OWN_LOOPBACK, "namespaces", user=user) == ["x", "x"]


TRACE = """
agent = facts
libc = ctypes.CDLL(None, use_errno=True)
found = {}
try:
    with open(f"/proc/{agent}/mem", "r+b"):
        found["memory"] = "reached"
except OSError as error:
    found["memory"] = errno.errorcode[error.errno]
numbers = {"x86_64": (101, 310, 438), "aarch64": (117, 270, 438)}[platform.machine()]
here = ctypes.create_string_buffer(8)
ours, theirs = (ctypes.c_size_t * 2)(ctypes.addressof(here), 8), (ctypes.c_size_t * 2)(8, 8)
words = {0: (16, agent, 0, 0), 1: (agent, ours, 1, theirs, 1, ctypes.c_ulong(0)), 2: (os.pidfd_open(agent), 0, 0)}
for place, name in enumerate(("ptrace", "process_vm_readv", "pidfd_getfd")):
    # As long: ctypes passes an int as 32 bits and leaves what is above them.
    whole = [ctypes.c_long(word) if isinstance(word, int) else word for word in words[place]]
    result = libc.syscall(ctypes.c_long(numbers[place]), *whole)
    found[name] = "reached" if result >= 0 else errno.errorcode[ctypes.get_errno()]
print(json.dumps(found))
"""


@pytest.fixture
def agent(user: int | None) -> Iterator[int]:
    """A process outside of the same user's, as its agent is one."""
    code = ISOLATE + "print(flush=True); sys.stdin.read()"
    words = ("none", "cpu", None, user, [])
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, *map(json.dumps, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_without_isolation_the_agent_can_be_traced(agent: int, user: int | None) -> None:
    found = ask(TRACE, "none", agent, user=user)
    assert found.pop("process_vm_readv") == "EFAULT"  # permitted; there is no such address
    assert set(found.values()) == {"reached"}


def test_the_agent_is_no_proxy(agent: int, user: int | None) -> None:
    found = ask(TRACE, "namespaces", agent, user=user)
    assert set(found.values()) <= {"EPERM", "EACCES"}, found


def test_by_seccomp_alone_the_calls_that_trace_are_denied(agent: int, user: int | None) -> None:
    found = ask(TRACE, "seccomp", agent, user=user)
    memory = found.pop("memory")
    assert set(found.values()) == {"EPERM"}
    # Without Landlock it remains open for an ordinary user; docs/site-administrator.md says so.
    assert memory in ("EPERM", "EACCES") or landlock_version() < 4


SIGNAL = """
try:
    os.kill(facts, 0)
    print(json.dumps("reached"))
except PermissionError:
    print(json.dumps("denied"))
"""


@pytest.mark.skipif(landlock_version() < 6, reason="Linux before 6.12")
@pytest.mark.parametrize("mechanism", CONFINED)
def test_the_agent_gets_no_signal(mechanism: Mechanism, agent: int, user: int | None) -> None:
    assert ask(SIGNAL, "none", agent, user=user) == "reached"
    assert ask(SIGNAL, mechanism, agent, user=user) == "denied"


READ = "print(json.dumps(open(facts).read()))"


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a file of another group's")
@pytest.mark.parametrize("mechanism", CONFINED)
def test_a_supplementary_groups_file_is_read(mechanism: Mechanism, open_folder: Path) -> None:
    secret = open_folder / "data"
    secret.write_text("records")
    os.chown(secret, 0, 777)
    secret.chmod(0o040)
    assert ask(READ, mechanism, str(secret), user=ORDINARY, groups=(777,)) == "records"


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a file of another user's")
@pytest.mark.parametrize("mechanism", CONFINED)
def test_root_reads_the_file_that_it_read_before(mechanism: Mechanism, open_folder: Path) -> None:
    secret = open_folder / "data"
    secret.write_text("records")
    os.chown(secret, ORDINARY, ORDINARY)
    secret.chmod(0o600)
    assert ask(READ, mechanism, str(secret)) == "records"


RINGS = """
libc = ctypes.CDLL(None, use_errno=True)
keys = {"x86_64": 249, "aarch64": 218}[platform.machine()]
found = []
for number in (425, keys):
    result = libc.syscall(number, 0, 0, 0, 0)
    found.append(errno.errorcode[ctypes.get_errno()] if result < 0 else "reached")
print(json.dumps(found))
"""


@pytest.mark.parametrize("mechanism", CONFINED)
def test_rings_and_key_requests_are_denied(mechanism: Mechanism) -> None:
    """Without a filter the kernel complains of their arguments: EFAULT."""
    assert ask(RINGS, "none") == ["EFAULT", "EFAULT"]
    assert ask(RINGS, mechanism) == ["EPERM", "EPERM"]


CUDA = """
one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
one.bind(f"\\0cuda-uvmfd-{os.getpid()}")
one.listen()
print(json.dumps("listens"))
"""


@pytest.mark.parametrize("mechanism", CONFINED)
def test_a_gpus_worker_can_make_the_socket_that_libcuda_needs(
    mechanism: Mechanism, user: int | None
) -> None:
    assert ask(CUDA, mechanism, gpu=True, user=user) == "listens"


@pytest.mark.parametrize("mechanism", CONFINED)
def test_a_gpus_worker_reaches_no_socket_of_that_kind(
    mechanism: Mechanism, open_folder: Path, user: int | None
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(open_folder / "s"))
        (open_folder / "s").chmod(0o777)
        server.listen()
        code = """
one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    one.connect(facts)
    print(json.dumps("reached"))
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]))
"""
        assert ask(code, "none", str(open_folder / "s"), user=user) == "reached"
        found = ask(code, mechanism, str(open_folder / "s"), gpu=True, user=user)
    assert found in ("ECONNREFUSED", "EPERM", "EACCES")


SEEKER = """
import json, os, socket
import numpy as np

class Seeker:
    def __init__(self, facts, out):
        found = {}
        for name, family, address in json.loads(facts):
            address = tuple(address) if isinstance(address, list) else address.encode()
            try:
                with socket.socket(getattr(socket, family)) as one:
                    one.settimeout(5)
                    one.connect(address)
                found[name] = "reached"
            except OSError as error:
                found[name] = type(error).__name__
        with open(out, "w") as file:
            json.dump(found, file)

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return np.full(64, index / 40, np.float32), index % 10

    def fingerprint(self):
        return "1"
"""


@pytest.fixture
def seeker(
    tmp_path: Path, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[SourceOptions, Path]:
    """A source whose code seeks a connection, and the file that tells what it found."""
    (tmp_path / "seeker.py").write_text(SEEKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ways = [
        ("tcp", "AF_INET", ["127.0.0.1", host["tcp"]]),
        ("tcp6", "AF_INET6", ["::1", host["tcp6"]]),
        ("path", "AF_UNIX", host["path"]),
        ("abstract", "AF_UNIX", f"\0{host['abstract']}"),
    ]
    arguments = {"facts": json.dumps(ways), "out": str(tmp_path / "found")}
    options = {"kind": "python", "target": "seeker:Seeker", "arguments": arguments}
    source = SourceOptions(options=options, lineage="mine", unit="row")
    return source, tmp_path / "found"


@pytest.mark.parametrize("network", [None, "isolated", "not_enforced"])
@pytest.mark.rule("29")
def test_a_source_of_a_warm_worker_reaches_nothing(
    tmp_path: Path, seeker: tuple[SourceOptions, Path], network: Network | None
) -> None:
    """With not_enforced it does: the servers are there."""
    source, found = seeker
    executor = LocalExecutor(
        site="cesga",
        sources=lambda: {SOURCE: source},
        threads=1,
        devices=("cpu",),
        log=tmp_path / "worker.log",
        network=network,
    )
    try:
        assert executor.describe(SOURCE, "digits", {"model": "mlp"}).train > 0
        base = tmp_path / "base"
        load_task("digits").write_initial({"model": "mlp"}, 1, base)
        assert executor.run(job_of(base), tmp_path / "job", 120).failure is None
    finally:
        executor.close()
    ways = set(json.loads(found.read_text()).values())
    assert ways == {"reached"} if network == "not_enforced" else "reached" not in ways
    said = "not enforced" in (tmp_path / "worker.log").read_text()
    assert said == (network == "not_enforced")


def test_a_choice_falls_back_to_what_the_kernel_permits_and_says_so() -> None:
    assert choose(None, {}).mechanism == choose("isolated", {}).mechanism == "namespaces"
    assert choose("not_enforced", {}).mechanism == "none"
    second = choose("isolated", {"namespaces": "not permitted"})
    assert second.mechanism == "seccomp"
    assert "namespaces: not permitted" in second.sentence
    neither: dict[Mechanism, str] = {"namespaces": "not permitted", "seccomp": "unknown here"}
    assert choose(None, neither).mechanism == "none"
    assert "not enforced" in choose(None, neither).sentence
    with pytest.raises(EnvironmentFailedError, match=r"not permitted.*unknown here.*not_enforced"):
        choose("isolated", neither)


def test_data_check_and_doctor_read_a_source_isolated(
    tmp_path: Path,
    seeker: tuple[SourceOptions, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, found = seeker
    home = tmp_path / "home"
    rule = DataRule(lineage="mine", public_size=30, unit="row")
    text = policy_text(coordinators={}, operators={}, data={"mine": rule}, tasks={"digits": "mine"})
    make_home(
        home,
        site="cesga",
        gateway_address="localhost:1",
        data={"mine": dict(source.options)},
        policy_text=text,
    )
    agent_yaml = home / "agent.yaml"
    plain = agent_yaml.read_text()
    for network, reached in (("isolated", False), ("not_enforced", True)):
        agent_yaml.write_text(f"{plain}worker: {{network: {network}, devices: [cpu]}}\n")
        capsys.readouterr()
        assert main(["data", "check", "mine", "--home", str(home)]) == 0
        assert "40 records" in capsys.readouterr().out
        assert ("reached" in json.loads(found.read_text()).values()) == reached
        found.unlink()
        assert [f.level for f in examine_data(load_agent_config(home, []))] == ["ok"]
        assert ("reached" in json.loads(found.read_text()).values()) == reached


@pytest.mark.parametrize("network", [None, "isolated", "not_enforced"])
def test_doctor_and_policy_check_say_which_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], network: Network | None
) -> None:
    home = make_plain_home(tmp_path, network)
    finding = next(iter(examine_worker(load_agent_config(home, []))))
    assert main(["policy", "check", "--home", str(home), "--json"]) == 1  # no key is pinned
    said = json.loads(capsys.readouterr().out)["network"]
    assert isolation_of(network).sentence == said
    assert said in finding.text
    assert finding.level == ("warn" if network == "not_enforced" else "ok")


def test_an_agent_that_cannot_isolate_as_asked_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel's refusals are those of a machine that is not at hand."""
    neither = {"namespaces": "Operation not permitted", "seccomp": "Invalid argument"}
    monkeypatch.setattr("site_agents.executors.isolation._refusals", lambda: neither)
    home = make_plain_home(tmp_path, "isolated")
    assert main(["run", "--home", str(home)]) == 1
    said = capsys.readouterr().err
    assert "worker.network" in said
    assert "not_enforced" in said
    assert next(iter(examine_worker(load_agent_config(home, [])))).level == "fail"


def make_plain_home(tmp_path: Path, network: Network | None) -> Path:
    home = tmp_path / "home"
    text = policy_text(coordinators={}, operators={}, data={}, tasks={})
    make_home(home, site="cesga", gateway_address="localhost:1", data={}, policy_text=text)
    with (home / "agent.yaml").open("a") as file:
        file.write(f"worker: {{network: {network or 'null'}}}\n")
    return home


def test_a_python_that_has_threads_already_falls_back(tmp_path: Path) -> None:
    """As one whose sitecustomize starts a thread: unshare(2) of users wants a single one."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    done = subprocess.run(
        [*isolated("isolated", gpu=False), "platform"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert b"isolated by seccomp" in done.stderr
    assert b"sitecustomize" in done.stderr


def test_an_isolated_process_dies_with_its_parent_and_by_a_kill(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import ctypes, time\nctypes.CDLL(None).prctl(1, 9)\nprint(flush=True)\ntime.sleep(600)\n"
    )
    parent = (
        "import subprocess, sys\nfrom fedfactory.isolation.launching import isolated\n"
        "child = subprocess.Popen([*isolated(None, gpu=False), 'child'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\nprint(child.pid, flush=True)\nsys.stdin.read()\n"
    )
    for kill_child in (True, False):
        with subprocess.Popen(
            [sys.executable, "-P", "-c", parent],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            child = psutil.Process(int(process.stdout.readline()))
            if kill_child:
                os.kill(child.pid, signal.SIGKILL)
            process.kill()
        assert psutil.wait_procs([child], timeout=20)[1] == []


LOADER = """
from multiprocessing import reduction
from fedfactory.isolation.sharing import share_through_proc
share_through_proc()
import torch
from torch.utils.data import DataLoader, TensorDataset
records = TensorDataset(torch.arange(64.0).reshape(64, 1))
loader = DataLoader(records, 8, num_workers=2, timeout=60)
total = sum(float(batch.sum()) for (batch,) in loader)
before = len(os.listdir("/proc/self/fd"))
for _ in range(100):
    os.close(reduction.DupFd(0).detach())
print(json.dumps([total, len(os.listdir("/proc/self/fd")) - before < 5]))
"""


@pytest.mark.parametrize("mechanism", CONFINED)
def test_the_processes_of_a_data_loader_share_tensors(mechanism: Mechanism) -> None:
    assert ask(LOADER, mechanism) == [64 * 63 / 2, True]

"""A node is lost with all its processes: its copies come back from the peer's memory, over TCP, bit by bit."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("memory_copies_script.py")
SLEEP = [sys.executable, "-c", "import signal; signal.pause()"]
NODES = 2
LONG = 100.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """A machine, as far as keepers know: an owner that lives as long as it, and a runtime directory of its own."""

    number: int
    owner: subprocess.Popen[bytes]
    runtime: Path

    def keepers(self) -> list[int]:
        return [int(path.name.split("-")[0]) for path in self.runtime.glob("production-ml/*/*.sock")]

    def lose(self, trainer: subprocess.Popen[str]) -> None:
        """All at once, as when the power goes."""
        for pid in (self.owner.pid, trainer.pid, *self.keepers()):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[Callable[[int, str], Node]]:
    with contextlib.ExitStack() as stack:

        def start(number: int, name: str) -> Node:
            runtime = tmp_path / f"runtime-{name}"
            runtime.mkdir()
            owner = stack.enter_context(subprocess.Popen(SLEEP))
            stack.callback(owner.kill)
            return Node(number, owner, runtime)

        yield start


@dataclass
class Network:
    """How the nodes reach each other."""

    first_address: str = "127.0.0.1"
    namespaces: tuple[str, ...] = ()
    """By node; none where all are on loopback."""

    def command(self, node: int, command: list[str]) -> list[str]:
        """What runs `command` on a node."""
        enter = ["nsenter", f"--net=/run/netns/{self.namespaces[node]}"] if self.namespaces else []
        return [*enter, *command]

    @property
    def environment(self) -> dict[str, str]:
        return {"MASTER_ADDR": self.first_address, **({"GLOO_SOCKET_IFNAME": "eth0"} if self.namespaces else {})}


@pytest.fixture(params=["loopback", "namespaces"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """Loopback, or two network namespaces with a cable between them, which are as far apart as two machines."""
    if request.param == "loopback":
        yield Network()
        return
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("network namespaces take root's rights, ip and nsenter")
    names = tuple(f"copies-{os.getpid()}-{node}" for node in range(NODES))
    with contextlib.ExitStack() as stack:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=True)
        cable = f"ip link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}"
        subprocess.run(cable.split(), check=True)
        for node, name in enumerate(names):
            for change in (f"addr add 10.77.0.{node + 1}/24 dev eth0", "link set eth0 up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *change.split()], check=True)
        yield Network("10.77.0.1", names)


@pytest.fixture
def train(tmp_path: Path, network: Network) -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """Start an attempt: one rank on each node."""
    with contextlib.ExitStack() as stack:

        def start(nodes: list[Node], *arguments: object, attempt: int = 0) -> list[subprocess.Popen[str]]:
            shared = {**network.environment, "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(NODES)}
            processes = []
            for node in nodes:
                own = {
                    "RANK": str(node.number),
                    "LOCAL_RANK": "0",
                    "LOCAL_WORLD_SIZE": "1",
                    "GROUP_RANK": str(node.number),
                    "GROUP_WORLD_SIZE": str(NODES),
                    "PRODUCTION_ML_OWNER_PID": str(node.owner.pid),
                    "PRODUCTION_ML_ATTEMPT": str(attempt),
                    "XDG_RUNTIME_DIR": str(node.runtime),
                    "OMP_NUM_THREADS": "1",
                }
                process = subprocess.Popen(
                    network.command(node.number, [sys.executable, str(SCRIPT), *map(str, arguments)]),
                    cwd=tmp_path,
                    env={**os.environ, **shared, **own},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                processes.append(stack.enter_context(process))
                stack.callback(process.kill)
            return processes

        yield start


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What it printed up to a line that ends so, or all of it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.endswith(f"{text}\n"):
            break
    return "".join(lines)


def weights_in(printed: str) -> str:
    return printed.split("weights ")[1].split()[0]


@pytest.fixture
def undisturbed(start_node, train, tmp_path: Path) -> Callable[[int], str]:
    """The weights of a training of that many steps in which nothing is lost."""

    def run(steps: int) -> str:
        processes = train([start_node(0, "x"), start_node(1, "y")], steps, 0.0)
        printed = [read_until(process, "nothing else") for process in processes]
        assert [process.wait(timeout=LONG) for process in processes] == [0, 0], printed
        (tmp_path / "checkpoints").rename(tmp_path / "checkpoints-undisturbed")
        return weights_in(printed[0])

    return run


def test_a_lost_node_comes_back_from_its_peers_memory(start_node, train, undisturbed, rng):
    steps, last = 60, rng.randrange(23, 29)
    expected = undisturbed(steps)
    nodes = [start_node(0, "a"), start_node(1, "b")]

    first = train(nodes, steps, 0.05)
    printed = read_until(first[0], f"saving {last}")
    nodes[1].lose(first[1])
    first[0].kill()
    second = train([nodes[0], start_node(1, "c")], steps, 0.0, attempt=1)
    found = [read_until(process, "nothing else") for process in second]

    assert f"saving {last}" in printed
    assert [process.wait(timeout=LONG) for process in second] == [0, 0], found
    assert "source peer" in found[0], found
    resumed = int(found[0].split("resumed ")[1].split()[0])
    print(f"saving {last}, resumed {resumed}")
    assert last - resumed <= 2
    assert weights_in(found[0]) == expected


@pytest.fixture
def launch_node(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a node's launcher; the first node hosts the rendezvous."""
    port = free_port()
    with contextlib.ExitStack() as stack:

        def start(name: str, *arguments: object) -> subprocess.Popen[str]:
            (tmp_path / f"runtime-{name}").mkdir()
            patience = "keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=60,last_call_timeout=2"
            flags = [
                f"--nnodes={NODES}",
                "--nproc-per-node=1",
                "--rdzv-backend=c10d",
                "--rdzv-id=copies",
                f"--rdzv-endpoint=127.0.0.1:{port}",
                f"--rdzv-conf=is_host={str(name == 'first').lower()},{patience}",
                "--local-addr=127.0.0.1",
                f"--run-dir=run-{name}",
            ]
            own = {
                "XDG_RUNTIME_DIR": str(tmp_path / f"runtime-{name}"),
                "OMP_NUM_THREADS": "1",
                # Else torchelastic (2.13) remembers the store of the dead node's time, and tells a new node of none.
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            }
            process = subprocess.Popen(
                [sys.executable, "-m", "production_ml.cli.main", "launch", *flags, str(SCRIPT), *map(str, arguments)],
                cwd=tmp_path,
                env={**os.environ, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def test_launchers_bring_a_lost_node_back_from_its_peers_memory(launch_node, tmp_path):
    steps = 100
    first, second = launch_node("first", steps, 0.05), launch_node("second", steps, 0.05)
    # Which of the nodes gets which rank is torchelastic's choice.
    worker = int(re.search(r"rank \d pid (\d+)", read_until(second, "damaged 0"))[1])
    read_until(first, "saving 25")
    lost = Node(1, second, tmp_path / "runtime-second")

    for pid in (second.pid, worker, *lost.keepers()):
        os.kill(pid, signal.SIGKILL)
    replacement = launch_node("replacement", steps, 0.05)
    found = [read_until(process, "nothing else") for process in (first, replacement)]

    assert [process.wait(timeout=LONG) for process in (first, replacement)] == [0, 0], found
    assert "source peer" in "".join(found)
    assert int(found[1].split("resumed ")[1].split()[0]) >= 23
    assert weights_in(found[0]) == weights_in(found[1])

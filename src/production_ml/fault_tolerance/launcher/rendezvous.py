"""How launchers meet before each attempt, and the new store that they give the workers every time.

torchelastic hands every attempt the same TCPStore, without a prefix per attempt. What a killed worker left there, the
next attempt takes for its own: on gloo most first restarts hang or fail. So the store here lives for one attempt only.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined] # exported by a star import
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from production_ml.core.errors import ConfigError

_STORE_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """What the launchers agreed on for one attempt."""

    attempt: int
    group_rank: int
    """This node's place among the nodes."""
    group_world_size: int
    """How many nodes there are."""
    store_host: str
    store_port: int


class AttemptRendezvous(Protocol):
    """A rendezvous that remembers its newest meeting."""

    meeting: Meeting


class SingleNodeRendezvous(RendezvousHandler):
    """One node has nobody to wait for: a new store on its loopback address is all there is to it.

    Args:
        run_id: The workers see it as TORCHELASTIC_RUN_ID.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one each time.
        first_attempt: The number of the attempt that the first call opens.
    """

    def __init__(self, run_id: str, *, host: str = "127.0.0.1", port: int = 0, first_attempt: int = 0) -> None:
        self._next_attempt = first_attempt
        self._run_id = run_id
        self._host = host
        self._port = port
        self._store: Store | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        self._store = None  # frees a port that the user has fixed
        self._store, port = _store_at(self._host, self._port)
        self.meeting = Meeting(
            attempt=self._next_attempt, group_rank=0, group_world_size=1, store_host=self._host, store_port=port
        )
        self._next_attempt += 1
        # Not the workers' store: torchelastic holds on to this one until the next round has begun.
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(self._host, port))

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return "single-node"

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else is there to be told."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._store = None
        return True


class FreshStoreRendezvous(RendezvousHandler):
    """Another rendezvous, with a new store for the workers in each of its rounds.

    Args:
        inner: Brings the nodes together (c10d, static, etcd).
        first_attempt: The number that this node would give its next attempt; the highest of all nodes holds.
    """

    def __init__(self, inner: RendezvousHandler, *, first_attempt: int = 0) -> None:
        self._next_attempt = first_attempt
        self._inner = inner
        self._round = 0
        self._store: Store | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        info = self._inner.next_rendezvous()
        self._round += 1
        # A static rendezvous gives every round the same store; the others prefix it themselves.
        prefix = f"production_ml/{self._round if self._inner.get_backend() == 'static' else 'round'}"
        place = PrefixStore(prefix, info.store)
        attempt = _agree_on_attempt(place, info.rank, info.world_size, wish=self._next_attempt)
        host, port = self._share_new_store(place, info)
        self.meeting = Meeting(
            attempt=attempt,
            group_rank=info.rank,
            group_world_size=info.world_size,
            store_host=host,
            store_port=port,
        )
        self._next_attempt = attempt + 1
        return RendezvousInfo(place, info.rank, info.world_size, RendezvousStoreInfo(host, port))

    def _share_new_store(self, place: Store, info: RendezvousInfo) -> tuple[str, int]:
        """The first node hosts it, at the address under which torchelastic lets it be found."""
        self._store = None
        found = info.bootstrap_store_info
        if info.rank == 0:
            host = found.master_addr if found is not None else socket.getfqdn()
            self._store = TCPStore(host, 0, is_master=True, timeout=_STORE_TIMEOUT, wait_for_workers=False)
            place.set("store", f"{self._store.port} {host}")
        port, host = place.get("store").decode().split(" ", 1)
        return host, int(port)

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return self._inner.get_backend()

    def is_closed(self) -> bool:
        return self._inner.is_closed()

    def set_closed(self) -> None:
        self._inner.set_closed()  # type: ignore[no-untyped-call]

    def num_nodes_waiting(self) -> int:
        return self._inner.num_nodes_waiting()

    def get_run_id(self) -> str:
        return self._inner.get_run_id()

    def shutdown(self) -> bool:
        self._store = None
        return self._inner.shutdown()


def _agree_on_attempt(place: Store, rank: int, world_size: int, *, wish: int) -> int:
    place.set(f"attempt/{rank}", str(wish))
    return max(int(place.get(f"attempt/{other}")) for other in range(world_size))


def _store_at(host: str, port: int) -> tuple[TCPStore, int]:
    """A store that listens on `host` alone; TCPStore by itself listens on every address of the machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as problem:
        raise ConfigError(
            "--master-addr and --master-port",
            f"{host}:{port}",
            f"cannot be listened on ({problem.strerror})",
            cure="Leave both flags out: the launcher then takes a free port of 127.0.0.1.",
        ) from problem
    bound = listener.getsockname()[1]
    store = TCPStore(
        host, bound, is_master=True, timeout=_STORE_TIMEOUT, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return store, bound

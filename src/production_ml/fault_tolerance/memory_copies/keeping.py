"""Whether and where this process's writer keeps copies in memory, and by which address peers reach it."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from typing import Final

from production_ml.core.distributed_env import DistributedEnv
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.saving.writer.client import Keeping

_ELSEWHERE: Final = "192.0.2.1"
"""An address for documentation (RFC 5737): the way to it is the way out; nothing is sent."""
_ANY_PORT: Final = 9
_NODES_OF_SRUN: Final = "SLURM_STEP_NUM_NODES"
"""Where srun starts the ranks itself, without a launcher on each node."""


def keeping(directory: CheckpointPlace, newest: int) -> Keeping | None:
    """The keeping of `newest` steps; None where none are wanted."""
    if not newest:
        return None
    env = DistributedEnv.read()
    place = MeetingPlace.of(directory.url)
    return Keeping(place=place, local_rank=env.local_rank, newest=newest, peer_host=peer_host(os.environ))


def this_node() -> str:
    """What tells this node from the others of the job."""
    return f"{socket.gethostname()}/{DistributedEnv.read().node_rank}"


def peer_host(environ: Mapping[str, str]) -> str | None:
    """The address of the interface that reaches the first rank; None where all ranks are on one node."""
    nodes = environ.get("GROUP_WORLD_SIZE") or environ.get(_NODES_OF_SRUN) or "1"
    if nodes in ("0", "1"):
        return None
    master = environ.get("MASTER_ADDR", "localhost")
    found = _address_towards(master)
    if found is not None and _is_loopback(found) and not _is_loopback(master):
        # The first rank's own host may know its name by a loopback address, which is no address for the others.
        return _address_towards(_ELSEWHERE) or found
    return found


def _address_towards(host: str) -> str | None:
    """Which address of this host packets to `host` would come from."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    except OSError:
        return None
    return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

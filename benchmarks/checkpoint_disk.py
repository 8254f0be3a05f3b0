"""Durable saves against raw writes, and loads, warm and cold, against memcpy and raw reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from checkpoint_floors import Floors, drop_from_cache, files_under
from checkpoint_peers import Peer, TorchSave, peers, remove
from checkpoint_states import Training
from checkpoint_timing import Contender, Row, Section, measure, multiple, share

_BUFFERED, _DIRECT = "raw write+fsync, buffered", "raw write+fsync, O_DIRECT"
_COPY_ONE, _COPY_ALL, _COPY_FRESH = "memcpy, 1 thread", "memcpy, all threads", "memcpy to fresh memory"
_READ_BUFFERED, _READ_DIRECT = "raw read, buffered", "raw read, O_DIRECT"


@dataclass(kw_only=True, slots=True)
class DiskBench:
    """Saves and loads of one state.

    Args:
        training: The state.
        directory: Where all write.
        rounds: How often each is measured.
        threads: How many threads are all threads.
        progress: Where to show how far it is.
    """

    training: Training
    directory: Path
    rounds: int
    threads: int
    progress: Progress

    def sections(self) -> Iterator[Section]:
        floors = Floors(self.training.size_bytes, self.directory / "raw")
        contenders = peers(self.training, self.directory, threads=self.threads)
        yield self._saves(floors, contenders)
        mapped = TorchSave(self.training, contenders["torch.save"].path, mmap=True)
        loaders = {name: peer for name, peer in contenders.items() if peer.path.exists()}
        loaders["torch.load(mmap=True)"] = mapped
        yield self._warm_loads(floors, loaders, fresh=False)
        yield self._warm_loads(floors, loaders, fresh=True)
        yield self._cold_loads(floors, loaders)
        floors.remove()
        for peer in contenders.values():
            remove(peer)

    def _section(self, name: str, title: str, note: str, rows: list[Row]) -> Section:
        size, tensors = self.training.size_bytes, self.training.tensor_count
        return Section(name=name, title=title, note=note, rows=rows, state_bytes=size, tensors=tensors)

    def _saves(self, floors: Floors, contenders: dict[str, Peer]) -> Section:
        def before(clear: Callable[[], None]) -> Callable[[], None]:
            def prepare() -> None:
                clear()
                os.sync()  # what one left to be written or discarded is not the next one's cost

            return prepare

        todo = {
            _BUFFERED: Contender(run=lambda: floors.write(direct=False), prepare=before(floors.remove)),
            _DIRECT: Contender(run=lambda: floors.write(direct=True), prepare=before(floors.remove)),
        }
        for name, peer in contenders.items():
            todo[name] = Contender(run=peer.save, prepare=before(lambda peer=peer: _clear(peer)))  # type: ignore[misc]
        samples = measure(todo, rounds=self.rounds, progress=self.progress, title="durable save")
        rows = [
            Row(
                name=name,
                samples=found,
                ratios={"of buffered": share(samples[_BUFFERED], found), "of O_DIRECT": share(samples[_DIRECT], found)},
            )
            for name, found in samples.items()
        ]
        note = "Until the data is durable; speed as a share of raw write+fsync of the same bytes. Only ours verifies."
        return self._section("save", "Durable save", note, rows)

    def _warm_loads(self, floors: Floors, loaders: dict[str, Peer], *, fresh: bool) -> Section:
        todo = {
            _COPY_ONE: Contender(run=lambda: floors.memcpy(threads=1)),
            _COPY_ALL: Contender(run=lambda: floors.memcpy(threads=self.threads)),
            _COPY_FRESH: Contender(run=floors.memcpy_to_fresh_memory),
        }
        for name, peer in loaders.items():
            todo[name] = self._load(peer, lambda: self._blank(fresh=fresh))
        kind = "into an optimizer without state" if fresh else "into a warm model and optimizer"
        samples = measure(todo, rounds=self.rounds, progress=self.progress, title=f"warm load {kind}")
        rows = [
            Row(
                name=name,
                samples=found,
                ratios={"memcpy, 1 thread": multiple(found, samples[_COPY_ONE]),
                        "memcpy, all threads": multiple(found, samples[_COPY_ALL])},
            )
            for name, found in samples.items()
        ]  # fmt: skip
        note = f"From the page cache {kind}; duration as a multiple of memcpy between warm buffers. Only ours verifies."
        return self._section("load-fresh" if fresh else "load-warm", f"Warm load {kind}", note, rows)

    def _cold_loads(self, floors: Floors, loaders: dict[str, Peer]) -> Section:
        cached: list[float] = []

        def chill(path: Path) -> None:
            self._blank(fresh=False)
            cached.append(drop_from_cache(files_under(path)))

        todo = {
            _READ_BUFFERED: Contender(run=lambda: floors.read(direct=False), prepare=lambda: chill(floors.path)),
            _READ_DIRECT: Contender(run=lambda: floors.read(direct=True), prepare=lambda: chill(floors.path)),
        }
        for name, peer in loaders.items():
            todo[name] = self._load(peer, lambda peer=peer: chill(peer.path))  # type: ignore[misc]
        samples = measure(todo, rounds=self.rounds, progress=self.progress, title="cold load")
        rows = [
            Row(
                name=name,
                samples=found,
                ratios={"of buffered": share(samples[_READ_BUFFERED], found),
                        "of O_DIRECT": share(samples[_READ_DIRECT], found)},
            )
            for name, found in samples.items()
        ]  # fmt: skip
        note = (
            "Files dropped from the page cache before each load, into a warm model and optimizer; speed as a share of "
            f"a raw cold read. At most {100 * max(cached):.2f}% of the pages were still cached (mincore)."
        )
        return self._section("load-cold", "Cold load", note, rows)

    def _load(self, peer: Peer, prepare: Callable[[], None]) -> Contender:
        return Contender(run=peer.load, prepare=prepare, check=lambda: self._check(peer))

    def _blank(self, *, fresh: bool) -> None:
        """Zeros everywhere, so that a load that loads nothing is found out."""
        for tensor in self.training.tensors():
            tensor.detach().zero_()
        if fresh:
            self.training.optimizer.state.clear()

    def _check(self, peer: Peer) -> None:
        for tensor in self.training.tensors():
            if tensor.dim() and not tensor.detach().reshape(-1)[-1:].any():
                raise RuntimeError(f"{type(peer).__name__} left a tensor of shape {list(tensor.shape)} at zero")


def _clear(peer: Peer) -> None:
    """Remove the last save; ours keeps its directory, which the manager made."""
    manages = hasattr(peer, "manager")
    remove(peer)
    if manages:
        peer.path.mkdir(parents=True)

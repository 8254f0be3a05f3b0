"""A visit to a keeper on this host: what it holds, the loan of an image, the takeover of all its copies."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace, connect
from production_ml.fault_tolerance.saving.writer import messages

_PATIENCE_SECONDS: Final = 30.0
"""A keeper whose trainer has just died hashes its last copy first."""


class GoneError(Exception):
    """The keeper is dead, or has not got the copy any more."""


def what_keepers_hold(place: MeetingPlace) -> Iterator[tuple[Path, dict[str, Any]]]:
    """For each keeper of this run on this host: its socket, and what it holds."""
    for path in place.sockets():
        with contextlib.suppress(GoneError):
            yield path, ask(path, {"kind": "list"})[0]


def ask(path: Path, question: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """One question, one answer, and the descriptors that came with it.

    Raises:
        GoneError: No answer comes.
    """
    try:
        with connect(path, _PATIENCE_SECONDS) as channel:
            messages.send(channel, question)
            received = messages.receive(channel)
    except OSError as problem:
        raise GoneError(str(problem)) from problem
    if received is None:
        raise GoneError("it ended")
    return received


def borrow(path: Path, save_id: str, rank: int) -> tuple[str, int | None]:
    """A copy's record and the descriptor of its image, which is the caller's to close.

    Raises:
        GoneError: It is not there any more.
    """
    answer, descriptors = ask(path, {"kind": "fetch", "save_id": save_id, "rank": rank})
    if answer["kind"] != "copy":
        raise GoneError("the copy is not held any more")
    return answer["record"], descriptors[0] if descriptors else None


def forget(place: MeetingPlace, save_ids: Collection[str]) -> None:
    """Let no keeper here hold these any more."""
    for path in place.sockets() if save_ids else ():
        with contextlib.suppress(GoneError):
            ask(path, {"kind": "forget", "save_ids": sorted(save_ids)})


def dismiss_others(place: MeetingPlace, own_name: str) -> None:
    """End the keepers of dead trainers: theirs are not the newest copies any more."""
    for path in place.sockets():
        if path.name != own_name:
            with contextlib.suppress(GoneError):
                ask(path, {"kind": "dismiss"})


def take_over(place: MeetingPlace, own_name: str, local_rank: int) -> Iterator[tuple[str, int | None, dict[str, bool]]]:
    """All that the keepers hold whose trainers were in this one's place and are dead. Those keepers end then.

    Yields:
        A copy's record, the descriptor of its image, and its standing: whether it `is_replica` of another node's, and
        `is_everywhere` then.
    """
    for path in place.sockets():
        if path.name != own_name:
            with contextlib.suppress(OSError), connect(path, _PATIENCE_SECONDS) as channel:
                messages.send(channel, {"kind": "take_over", "local_rank": local_rank})
                while (received := messages.receive(channel)) is not None and received[0]["kind"] == "copy":
                    message, descriptors = received
                    yield message["record"], descriptors[0] if descriptors else None, message["standing"]
                if received is not None and received[0]["kind"] == "all":
                    messages.send(channel, {"kind": "taken"})
            if not is_listening(path):
                place.leave(path.name)


def is_listening(path: Path) -> bool:
    """Whether a keeper is alive behind a socket's name; its process was killed where it is not."""
    try:
        connect(path, _PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True

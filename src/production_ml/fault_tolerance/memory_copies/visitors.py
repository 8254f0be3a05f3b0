"""Who comes to a keeper's door, one after the other, whatever keeps one of them from being let in."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

_PASSING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)
"""What hinders one from being let in now, and others not later."""
_BREATH_SECONDS: Final = 0.1


def visitors(listener: socket.socket, pause: Callable[[float], None] = time.sleep) -> Iterator[socket.socket]:
    """Each visitor, until the listener is closed.

    Args:
        listener: Where they come to.
        pause: Waits so many seconds for what is lacking, such as a free descriptor.
    """
    while True:
        try:
            visitor, _ = listener.accept()
        except OSError as problem:
            if problem.errno not in _PASSING:
                return
            pause(_BREATH_SECONDS)
            continue
        yield visitor

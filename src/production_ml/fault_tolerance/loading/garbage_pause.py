"""A pause of Python's cyclic garbage collection while thousands of entries are read that all stay alive."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def garbage_pause() -> Iterator[None]:
    """Within it no full collection comes.

    Each of them walks the 300,000 objects that torch keeps, which takes 0.15 s, and a manifest of 10,000 tensors makes
    enough containers for several; none of them is garbage.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

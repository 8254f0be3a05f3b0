"""The newest commits in an object store, by one object that is asked for by name: a listing may lag behind."""

from __future__ import annotations

import json
import logging
from typing import Final

from production_ml.core.structured_logging import log_event
from production_ml.storage.base import ObjectStore

_LOG: Final = logging.getLogger(__name__)
_KEY: Final = "latest.json"
_KEPT: Final = 16


class LatestCommits:
    """The steps that were committed last. It only helps the listing, so it may be missing, old or damaged.

    Args:
        store: Where the checkpoints are.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def steps(self) -> list[int]:
        """The steps, the newest commit first.

        Raises:
            OSError: The store does not answer.
        """
        try:
            steps = json.loads(self._store.get(_KEY))["steps"]
            return [int(step) for step in steps if int(step) >= 0]
        except FileNotFoundError:
            return []
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
            # The next commit writes it anew.
            what = f"{self._store.address}/{_KEY} is damaged."
            log_event(_LOG, "checkpoint_pointer_damaged", what, level=logging.WARNING)
            return []

    def add(self, step: int) -> None:
        """A checkpoint of `step` was committed.

        Raises:
            OSError: The store does not answer.
        """
        steps = [step, *(other for other in self.steps() if other != step)][:_KEPT]
        self._store.put(_KEY, [json.dumps({"steps": steps}).encode() + b"\n"])

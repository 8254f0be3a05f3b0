"""A rank's record takes what the process tells while it is open, and lets go of the process when it is closed."""

from __future__ import annotations

import gc
import logging
import os
import sys
import weakref

import pytest

from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.errors import RunDirectoryError
from production_ml.core.structured_logging import LIBRARY_LOGGER, log_event
from production_ml.monitoring.rank_record import RankRecord
from production_ml.monitoring.run_log import RunLog

ALONE = DistributedEnv(owner_pid=os.getpid())


def test_everybodys_events_are_kept_at_the_ranks_step_until_it_is_closed(run):
    record = RankRecord(run, ALONE)
    record.step = 7
    log_event(logging.getLogger("production_ml.checkpoints"), "checkpoint_saved")
    record.close()
    log_event(logging.getLogger("production_ml.checkpoints"), "checkpoint_saved")

    events = [(event.name, event.step) for _, event in RunLog.open(run.path).events()]
    assert events[-2:] == [("checkpoint_saved", 7), ("monitor_closed", 7)]


def test_after_closing_the_process_holds_nothing_of_it(run):
    hook, handlers = sys.excepthook, list(LIBRARY_LOGGER.handlers)
    record = RankRecord(run, ALONE)
    record.close()
    record.close()
    gone = weakref.ref(record)
    del record
    gc.collect()

    assert gone() is None
    assert sys.excepthook == hook
    assert LIBRARY_LOGGER.handlers == handlers


def test_a_structured_log_that_cannot_be_opened_is_named_and_nothing_is_left_behind(run):
    run.structured_log("rank-00000").mkdir()
    hook, handlers = sys.excepthook, list(LIBRARY_LOGGER.handlers)

    with pytest.raises(RunDirectoryError, match="logs cannot be written"):
        RankRecord(run, ALONE)

    assert sys.excepthook == hook
    assert LIBRARY_LOGGER.handlers == handlers

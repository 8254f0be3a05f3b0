"""What holds for every test: no service test is skipped, no event leaks, seeds are printed, the duration is told."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import time
from collections.abc import Callable, Generator, Iterator

import psutil
import pytest

from production_ml.core.structured_logging import subscribe, unsubscribe


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Chance with a seed that a failing test shows; repeat it with PRODUCTION_ML_TEST_SEED."""
    seed = int(os.environ.get("PRODUCTION_ML_TEST_SEED", random.SystemRandom().randrange(10**9)))
    print(f"PRODUCTION_ML_TEST_SEED={seed} for {request.node.name}")
    return random.Random(seed)


@pytest.fixture
def file_size_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Within it, this process and its children can write no file of more bytes: the kernel refuses, as a full disk."""

    @contextlib.contextmanager
    def limit(size_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        _limit_file_sizes(size_bytes, hard)
        try:
            yield
        finally:
            _limit_file_sizes(soft, hard)

    return limit


def _limit_file_sizes(soft: int, hard: int) -> None:
    """Of those children too that run already, such as the process that writes checkpoints."""
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def _no_early_events() -> None:
    """What other tests logged while nobody listened must not reach this test's monitor."""
    subscribe(drain := [].append)
    unsubscribe(drain)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A service test that is skipped has failed: it would hide that nothing was tested."""
    report = yield
    if report.skipped and "services" in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped. Install what it needs with: make services"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How long `make test` took, set-up and checks included."""
    started = os.environ.get("MAKE_STARTED")
    if started is not None:
        terminalreporter.write_line(f"make test took {time.time() - int(started):.0f} s, set-up and checks included.")

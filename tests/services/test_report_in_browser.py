"""The report in a real browser: charts are drawn, nothing is fetched, no script fails, and it fits a phone."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from production_ml.report import write_report
from production_ml.testing.synthetic_run import SyntheticRun, write_recovered_run

pytestmark = pytest.mark.services
ANSWER_SECONDS = 60
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]
# Chromium speaks over descriptors 3 and 4; Popen can hand descriptors on, but not renumber them.
BOOTSTRAP = (
    "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
)
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


class Browser:
    """Headless Chromium, driven by the DevTools protocol over a pipe."""

    def __init__(self, binary: str, profile: str) -> None:
        (commands_read, commands), (answers, answers_write) = os.pipe(), os.pipe()
        # Above 9, so that neither is in the way of 3 and 4.
        given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands_read, answers_write)]
        command = [sys.executable, "-c", BOOTSTRAP, *map(str, given), binary, *FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(command, pass_fds=given, stderr=subprocess.DEVNULL)
        for end in (commands_read, answers_write, *given):
            os.close(end)
        self._commands, self._answers, self._unread = commands, answers, b""
        self._number, self._session = 0, ""
        self.events: list[dict[str, Any]] = []

    def open(self, path: Path, *, width: int = 1280, scheme: str = "light", first: str = "") -> None:
        """Open a page of its own, run the script `first` before the page's, and wait until the charts are drawn."""
        self._session, self.events = "", []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        is_phone = width < 500
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=is_phone)
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.addScriptToEvaluateOnNewDocument", source=first)
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        self.ask("window.chartsDrawn")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """What the page asked for."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings of the page, those of its content policy among them."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": params, **session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait(timeout=ANSWER_SECONDS)
        os.close(self._commands)
        os.close(self._answers)

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._answers, 1 << 16) if ready else b""
            if not piece:
                pytest.fail(f"Chromium said nothing for {ANSWER_SECONDS} s, or ended")
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.fail("The report is tested in a real browser. Install one with: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(binary, profile)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recovered") / "run"
    write_recovered_run(path)
    return write_report(path)


def test_every_chart_is_drawn_without_an_error_and_without_the_network(browser, recovered):
    browser.open(recovered)

    assert browser.ask("document.documentElement.dataset.charts") == "6"
    assert browser.ask("[...document.querySelectorAll('.chart')].every(c => c.querySelector('.main-svg'))")
    # Two attempts, the redone steps of the first, and two bands.
    assert browser.ask("document.querySelectorAll('[aria-label^=\"train/loss\"] .scatterlayer .trace').length") == 5
    assert browser.ask("document.documentElement.dataset.error") is None
    assert browser.complaints() == []
    assert browser.requests() == [recovered.as_uri()]


def test_the_failure_stands_on_the_timeline_with_its_signal_and_rank(browser, recovered):
    browser.open(recovered)

    label = browser.ask("document.querySelector('.chart .annotation-text').textContent")
    assert "SIGKILL, rank 1" in label
    assert "back in 1.00 s" in label
    assert browser.ask("document.querySelectorAll('.chart')[0].querySelectorAll('.shapelayer path').length") == 2
    assert "killed by SIGKILL" in browser.ask("document.body.innerText")


def test_no_button_of_a_chart_sends_it_away(browser, recovered):
    browser.open(recovered)

    titles = browser.ask("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert set(titles) == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}


@pytest.mark.parametrize(("scheme", "background"), [("light", "rgb(246, 247, 249)"), ("dark", "rgb(15, 18, 22)")])
def test_page_and_charts_follow_the_colours_that_the_reader_prefers(browser, recovered, scheme, background):
    browser.open(recovered, scheme=scheme)

    assert browser.ask("getComputedStyle(document.body).backgroundColor") == background
    ticks = browser.ask("getComputedStyle(document.querySelector('.xtick text')).fill")
    assert ticks == browser.ask("getComputedStyle(document.querySelector('footer')).color")


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_is_wider_than_the_screen(browser, recovered, width):
    browser.open(recovered, width=width)

    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("[...document.querySelectorAll('.chart')].every(c => c.clientWidth > 200)")


def test_text_of_users_is_shown_as_it_is_and_never_run(browser, tmp_path):
    with SyntheticRun(tmp_path / "run", experiment=HOSTILE) as run:
        run.event(0, "alert", message=HOSTILE, title=HOSTILE)
        for step in range(3):
            run.metrics(1 + step, step, {HOSTILE: float(step)})
        facts = {"exit_code": 1, "signal": HOSTILE, "reason": HOSTILE}
        run.launcher_event(5, "worker_failed", attempt=0, rank=0, **facts)

    browser.open(write_report(tmp_path / "run"))

    assert browser.ask("document.title") == f"shop / {HOSTILE}"
    assert browser.ask("document.querySelector('h4').textContent") == HOSTILE
    assert browser.ask("document.querySelector('.chart .annotation-text').textContent").startswith("</script><script>")
    assert browser.ask("document.images.length") == 0
    assert browser.complaints() == []


def test_a_run_without_records_opens_as_well(browser, tmp_path):
    SyntheticRun(tmp_path / "run").close()

    browser.open(write_report(tmp_path / "run"))

    assert "Nothing was logged yet." in browser.ask("document.body.innerText")
    assert browser.complaints() == []


def test_a_browser_that_cannot_unpack_the_charts_says_so_and_shows_the_tables(browser, recovered):
    browser.open(recovered, first="delete window.DecompressionStream")

    assert "cannot be drawn in this browser" in browser.ask("document.querySelector('.chart').innerText")
    assert "killed by SIGKILL" in browser.ask("document.body.innerText")

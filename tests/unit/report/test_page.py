"""The page holds everything, fetches nothing, and runs no script but its own."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re

import pytest

from production_ml.report.outcome import ending
from production_ml.report.page import compressed, content_policy, render
from production_ml.report.summary import summarize
from production_ml.report.throughput import throughput
from production_ml.testing.synthetic_run import SyntheticRun

PLOTLY = "/* stands in for plotly.js, ß */"
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"


def page_of(story) -> str:
    rate = throughput(story)
    return render(story, summarize(story, ending(story.log), rate), rate, plotly_js=PLOTLY, made_at=0.0)


def script(page: str, name: str) -> str:
    return re.search(rf'<script type="[^"]+" id="{name}">(.*?)</script>', page, re.DOTALL)[1]


def test_a_recovered_run_is_told_in_full(recovered):
    page = page_of(recovered)

    for text in ("exp-001", "finished", "SIGKILL", "killed by SIGKILL", "Loss spiked", "train/learning_rate"):
        assert text in page
    assert "6.7% of all steps" in page
    assert len(json.loads(script(page, "charts"))) == page.count('class="chart"') == 6


def test_nothing_is_fetched_from_anywhere(recovered):
    page = page_of(recovered)

    assert re.findall(r"""(?:src|href)=["']?([^"'>]*)""", page) == ["data:,"]
    assert "url(" not in page
    assert "default-src &#x27;none&#x27;" in page


def test_text_of_users_is_shown_and_never_run(tmp_path):
    from production_ml.monitoring.run_log import RunLog
    from production_ml.report.story import read_story

    with SyntheticRun(tmp_path / "run", project=HOSTILE, experiment=HOSTILE, run_id=HOSTILE, node=HOSTILE) as run:
        run.event(0, "run_started", config={HOSTILE: HOSTILE}, command=[HOSTILE])
        run.metrics(1, 0, {HOSTILE: 1.0, f"{HOSTILE}/loss": 2.0}, rank=0)
        run.metrics(1, 0, {HOSTILE: 1.5}, rank=1)
        run.event(2, "alert", level=HOSTILE, message=HOSTILE, title=HOSTILE)
        run.event(3, HOSTILE, message=HOSTILE, traceback=HOSTILE)
        run.event(3, "checkpoint_saved", step=1, path=HOSTILE)
        run.launcher_event(4, "worker_failed", attempt=0, rank=0, exit_code=1, signal=HOSTILE, reason=HOSTILE)

    page = page_of(read_story(RunLog.open(tmp_path / "run")))

    assert page.count("<script") == page.count("</script>") == 3
    assert "<img" not in page
    assert "&lt;/script&gt;" in page


def test_only_the_scripts_of_the_page_may_run():
    policy = content_policy("one", "two")

    digest = base64.b64encode(hashlib.sha256(b"one").digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_the_scripts_on_the_page_are_those_that_the_policy_allows(recovered):
    page = page_of(recovered)

    own = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    plotly = gzip.decompress(base64.b64decode(script(page, "plotly"))).decode()
    assert plotly == PLOTLY
    for text in (own, plotly):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in page


def test_the_same_run_gives_the_same_bytes(recovered):
    assert page_of(recovered) == page_of(recovered)
    assert compressed(PLOTLY) == compressed(PLOTLY)


def test_an_empty_run_says_so_everywhere(run, read):
    page = page_of(read())

    for text in ("Not started", "Nothing was logged yet.", "No failure in this run.", "No metric was logged."):
        assert text in page
    assert json.loads(script(page, "charts")) == []


def test_a_running_run_says_how_long_so_far(run, read):
    run.metrics(0, 0, {"loss": 1.0})
    run.metrics(61, 1, {"loss": 1.0})

    assert "1 min 01 s so far" in page_of(read())


@pytest.mark.parametrize("width", ["@media (max-width: 800px)", "prefers-color-scheme: dark", "@media print"])
def test_the_page_has_a_look_for_phones_the_night_and_paper(recovered, width):
    assert width in page_of(recovered)

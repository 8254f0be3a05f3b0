"""The page: header, figures, charts and tables in the template, with plotly.js inside, so that it works offline."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable
from importlib import resources
from string import Template

from production_ml import __version__
from production_ml.report import numbers, tables
from production_ml.report.charts import Figure, metric_chart, points_per_series, throughput_chart
from production_ml.report.legend import metrics_legend, timeline_legend
from production_ml.report.markup import Markup, element, escape, join, script_json
from production_ml.report.outcome import Outcome
from production_ml.report.story import RunStory, shortened
from production_ml.report.summary import MetricFigures, Summary
from production_ml.report.throughput import Throughput
from production_ml.report.timeline import timeline

_LONGEST_REASON = 300


def render(story: RunStory, summary: Summary, rate: Throughput | None, *, plotly_js: str, made_at: float) -> str:
    """The whole report as one HTML text that asks nothing of any network.

    Args:
        story: The run.
        summary: Its figures.
        rate: Its throughput.
        plotly_js: The source of plotly.js.
        made_at: Wall seconds to put under the report.
    """
    script = _asset("report.js")
    sheet = ChartSheet()
    return Template(_asset("template.html")).substitute(
        title=escape(f"{summary.project} / {summary.experiment}"),
        policy=escape(content_policy(script, plotly_js)),
        style=_asset("style.css"),
        header=_header(story, summary),
        figures=_figures(summary),
        timeline=_timeline(story, sheet),
        throughput=_throughput(story, rate, sheet),
        metrics=_metrics(story, summary, sheet),
        failures=tables.failures_table(story),
        checkpoints=tables.checkpoints_table(story),
        events=tables.events_table(story),
        configuration=tables.configuration(story),
        environment=tables.environment(story),
        footer=escape(f"Made by production-ml {__version__} from the run log, {numbers.moment(made_at)}."),
        charts=script_json(sheet.figures),
        plotly=compressed(plotly_js),
        script=script,
    )


class ChartSheet:
    """Collects figures; the page's script draws each where it was placed."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def place(self, figure: Figure, label: str) -> Markup:
        """The element that the figure will be drawn in. It has its height from the start, so that nothing jumps."""
        self.figures.append(figure)
        number, height = str(len(self.figures) - 1), f"min-height:{figure['layout']['height']}px"
        return element("div", class_="chart", data_chart=number, style=height, role="img", aria_label=label)


def content_policy(*scripts: str) -> str:
    """A Content-Security-Policy under which only these scripts run, and nothing is fetched from anywhere."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'"
    )


def compressed(text: str) -> str:
    """A third of plotly.js's 5 MB: a report is mailed and kept. Every browser since 2023 can open it."""
    # mtime: the same run gives the same bytes.
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def _asset(name: str) -> str:
    return resources.files("production_ml.report").joinpath(name).read_text(encoding="utf-8")


def _header(story: RunStory, summary: Summary) -> Markup:
    is_running = summary.outcome == Outcome.RUNNING
    nodes = len({source.node for source in story.sources})
    facts = [
        f"Started {numbers.moment(story.started_at)}" if story.log.records else "Not started",
        f"{numbers.seconds(summary.duration_seconds)} so far"
        if is_running
        else f"took {numbers.seconds(summary.duration_seconds)}",
        f"{numbers.plural(summary.world_size, 'rank')} on {numbers.plural(nodes, 'node')}",
        numbers.plural(summary.attempts, "attempt"),
    ]
    name = element("span", f"{summary.project} /", class_="project")
    badge = element("span", summary.outcome, class_=f"outcome {summary.outcome.replace(' ', '-')}")
    return join(
        [
            element("p", element("code", summary.run_id), class_="run-id"),
            element("h1", name, f" {summary.experiment} ", badge),
            element("p", " · ".join(facts), class_="when"),
            element(
                "p", f"{summary.outcome.capitalize()}: {shortened(summary.because, _LONGEST_REASON)}.", class_="because"
            ),
        ]
    )


def _figures(summary: Summary) -> Markup:
    loss, restarts = summary.loss, summary.restarts
    share = f"{summary.steps_redone / summary.steps:.1%} of all steps" if summary.steps else ""
    damaged = f"{summary.checkpoints_damaged} damaged" if summary.checkpoints_damaged else "none damaged"
    cards = [
        _card("Steps", numbers.count(summary.steps)),
        _card("Steps redone", numbers.count(summary.steps_redone), share if summary.steps_redone else ""),
        _card("Restarts", numbers.count(restarts)),
        _card("Recovery time", numbers.seconds(summary.recovery_seconds) if restarts else numbers.UNKNOWN),
        _card("Final loss", numbers.value(loss.final if loss else None), loss.name if loss else ""),
        _card("Best loss", numbers.value(loss.lowest if loss else None), _at_step(loss)),
        _card("Throughput", *_throughput_text(summary)),
        _card("Checkpoints", numbers.count(summary.checkpoints_saved), damaged if summary.checkpoints_saved else ""),
    ]
    return element("dl", *cards, class_="figures")


def _card(label: str, value: str, note: str = "") -> Markup:
    children = [element("dt", label), element("dd", value, class_="value")]
    return element("div", *children, element("dd", note, class_="note") if note else "")


def _at_step(figure: MetricFigures | None) -> str:
    return "" if figure is None or figure.lowest_step is None else f"at step {numbers.count(figure.lowest_step)}"


def _throughput_text(summary: Summary) -> tuple[str, str]:
    if summary.throughput is None:
        return numbers.UNKNOWN, ""
    source = (
        f"median of {summary.throughput_metric}" if summary.throughput_metric else "from the times of rank 0's steps"
    )
    return f"{numbers.value(summary.throughput)} {summary.throughput_unit}", source


def _timeline(story: RunStory, sheet: ChartSheet) -> Markup:
    if not story.log.records:
        return element("p", "Nothing was logged yet.", class_="empty")
    label = "Timeline of the run: attempts, failures, recoveries, checkpoints and alerts"
    return join([timeline_legend(story), sheet.place(timeline(story), label)])


def _throughput(story: RunStory, rate: Throughput | None, sheet: ChartSheet) -> Markup:
    if rate is None:
        return element("p", "Too few steps were logged to tell a throughput.", class_="empty")
    return sheet.place(throughput_chart(rate, story), f"Throughput in {rate.unit} over time")


def _metrics(story: RunStory, summary: Summary, sheet: ChartSheet) -> Markup:
    """Cards in groups by what stands before the first slash: `train`, `val`, ..."""
    if not summary.metrics:
        return element("p", "No metric was logged.", class_="empty")
    groups: dict[str, list[MetricFigures]] = {}
    for figure in summary.metrics:
        prefix, slash, _ = figure.name.partition("/")
        groups.setdefault(prefix if slash else "", []).append(figure)
    points = points_per_series(len(summary.metrics))
    drawn = [_metric_group(prefix, figures, story, sheet, points) for prefix, figures in groups.items()]
    return join([metrics_legend(story), *drawn])


def _metric_group(
    prefix: str, figures: Iterable[MetricFigures], story: RunStory, sheet: ChartSheet, points: int
) -> Markup:
    cards = []
    for figure in figures:
        chart = sheet.place(metric_chart(story.series[figure.name], story, points), f"{figure.name} over steps")
        title = element("h4", figure.name)
        cards.append(element("article", title, element("p", _metric_note(figure), class_="note"), chart))
    return join([element("h3", prefix or "other"), element("div", *cards, class_="grid")])


def _metric_note(figure: MetricFigures) -> str:
    parts = [f"last {numbers.value(figure.final)}"]
    if figure.lowest is not None:
        parts.append(f"lowest {numbers.value(figure.lowest)} {_at_step(figure)}")
        parts.append(f"highest {numbers.value(figure.highest)}")
    if figure.not_finite:
        parts.append(f"{numbers.plural(figure.not_finite, 'value')} NaN or infinite")
    return " · ".join(parts)

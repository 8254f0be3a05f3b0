"""The tables say what the log says, and say so where there is nothing to say."""

from __future__ import annotations

import re

from production_ml.report import tables


def cells(markup):
    """The text of each row's cells."""
    rows = re.findall(r"<tr>(.*?)</tr>", markup, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows[1:]]


def test_a_failure_and_its_recovery_in_one_row(recovered):
    ((number, worker, cause, at, detected, down, resumed, redone, said),) = cells(tables.failures_table(recovered))

    assert (number, worker, cause, down, resumed, redone) == ("1", "rank 1", "SIGKILL", "1.00 s", "120", "20")
    assert (at.endswith(" s"), detected.endswith(" ms"), said) == (True, True, "killed by SIGKILL")


def test_a_failure_that_was_not_recovered_says_so(run, read):
    run.metrics(0, 0, {"loss": 1.0})
    run.launcher_event(1, "worker_failed", attempt=0, rank=1, exit_code=3, signal=None, reason="exited with 3")

    (row,) = cells(tables.failures_table(read()))

    assert row[1:3] == ["rank 1", "exit code 3"]
    assert "not recovered" in row


def test_what_the_log_does_not_say_of_a_restart_is_not_made_up(run, read):
    run.metrics(0, 0, {"loss": 1.0})
    run.metrics(2, 0, {"loss": 1.0}, attempt=1)
    run.event(3, "run_restarted", attempt=2)

    first, second = cells(tables.failures_table(read()))

    assert first[1:3] == second[1:3] == ["unknown rank", "stopped"]
    assert first[4:7] == ["—", "2.00 s", "0 (no load logged)"]
    assert second[4:7] == ["—", "no step made", "—"]


def test_a_save_of_several_ranks_took_as_long_as_the_slowest(run, read):
    for rank, took in ((0, 0.5), (1, 1.25)):
        facts = {"duration_seconds": took, "stall_seconds": took / 100, "size_bytes": 44_145_000, "path": "c/step-10"}
        run.event(rank, "checkpoint_saved", rank=rank, step=10, **facts)

    assert cells(tables.checkpoints_table(read())) == [
        ["10", "0", "1.00 s", "1.25 s", "12.5 ms", "42.1 MiB", "c/step-10"]
    ]


def test_events_are_listed_in_order_with_their_messages_or_facts(run, read):
    run.event(1, "alert", rank=1, step=4, level="warning", message="3 times its average", title="Loss spiked")
    run.launcher_event(2, "restart_scheduled", attempt=1, restarts_left=2)
    run.event(3, "exception", level="error", message="ValueError: no", traceback="Traceback\n  File <stdin>")

    markup = tables.events_table(read())
    first, second, third = cells(markup)

    assert first == ["0 s", "warning", "alert", "rank 1", "4", "Loss spiked: 3 times its average"]
    assert second == ["1.00 s", "info", "restart_scheduled", "launcher", "—", "attempt 1, restarts_left 2"]
    assert third[1:3] == ["error", "exception"]
    assert "<pre>Traceback\n  File &lt;stdin&gt;</pre>" in markup


def test_the_last_words_of_a_worker_are_shown_line_by_line(run, read):
    run.launcher_event(0, "worker_failed", attempt=0, rank=0, stderr_tail=["Traceback", "  <boom>"])

    assert "<pre>Traceback\n  &lt;boom&gt;</pre>" in tables.events_table(read())


def test_of_very_many_events_warnings_come_before_others_and_the_newest_before_older(run, read):
    for at in range(10):
        run.event(at, "tick", level="warning" if at in (0, 4) else "info", message=str(at))

    chosen = tables.choose_events(list(read().log.events()), 4)

    assert [event.message for _, event in chosen] == ["0", "4", "8", "9"]


def test_more_events_than_a_page_takes_are_cut_with_a_word_about_it(run, read):
    for at in range(tables.MOST_ROWS + 100):
        run.event(at, "tick")

    markup = tables.events_table(read())

    assert len(cells(markup)) == tables.MOST_ROWS
    assert "500 of 600 events are shown" in markup


def test_long_names_and_messages_are_shortened(run, read):
    run.event(0, "x" * 1000, level="y" * 1000, message="z" * 10_000)

    ((_, level, name, _, _, message),) = cells(tables.events_table(read()))

    assert (len(level), len(name), len(message)) == (40, 40, 500)
    assert message.endswith("…")


def test_nested_configuration_is_flat_and_escaped(run, read):
    run.event(0, "run_started", config={"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "<b>": "<script>"})

    markup = tables.configuration(read())

    assert "<dt>optimizer.lr</dt><dd>0.1</dd><dt>optimizer.betas</dt><dd>[0.9, 0.99]</dd>" in markup
    assert "<dt>&lt;b&gt;</dt><dd>&lt;script&gt;</dd>" in markup


def test_the_environment_names_command_nodes_and_world_size(recovered):
    markup = tables.environment(recovered)

    for text in ("train.py --steps 300", "2.13.0", "synthetic-node", "<dt>world size</dt><dd>2</dd>"):
        assert text in markup


def test_bytes_of_the_log_that_cannot_be_read_are_told(run, read):
    for step in range(20):
        run.event(step, "tick")
    run.close()
    (path,) = run.run.log_directory.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)

    assert "1 part of the run log cannot be read" in tables.events_table(read())


def test_empty_tables_say_that_they_are(run, read):
    story = read()

    assert "No failure in this run." in tables.failures_table(story)
    assert "No checkpoint was saved." in tables.checkpoints_table(story)
    assert "No event was logged." in tables.events_table(story)
    assert "No configuration was recorded" in tables.configuration(story)
    assert "Nothing was recorded." in tables.environment(story)

"""The reader gives what was written, says where it cannot, and never makes anything up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from production_ml.core.errors import InputFileError
from production_ml.monitoring.run_directory import RunDirectory
from production_ml.monitoring.run_log import MetricsRecord, RunLog, RunLogFollower, RunLogWriter
from production_ml.monitoring.run_log import reader as reader_module
from production_ml.testing.clock import FakeClock
from production_ml.testing.synthetic_run import SyntheticRun

STEPS = 40


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A run of `STEPS` steps with an event in its middle."""
    with SyntheticRun(tmp_path / "run") as run:
        for step in range(STEPS):
            run.metrics(step, step, {"loss": 1.0 / (step + 1), "step": float(step)})
            if step == STEPS // 2:
                run.event(step, "checkpoint_saved", step=step)
    return tmp_path / "run"


def only_file(run_dir: Path) -> Path:
    (path,) = RunDirectory(run_dir).log_directory.iterdir()
    return path


def steps(log: RunLog) -> list[int]:
    for _, record in log.metrics():
        assert record.values == {"loss": 1.0 / (record.step + 1), "step": float(record.step)}
    return [record.step for _, record in log.metrics()]


def test_a_flipped_bit_anywhere_costs_what_it_hit_and_nothing_is_made_up(written, rng, caplog):
    path = only_file(written)
    sound = path.read_bytes()
    for _ in range(300):
        place = rng.randrange(len(sound))
        damaged = bytearray(sound)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)

        log = RunLog.open(written)

        assert set(steps(log)) <= set(range(STEPS))
        in_tail = not log.damages and place >= len(sound) - 100
        assert in_tail or any(d.path == path and d.begin <= place < d.end for d in log.damages)


def test_a_flip_in_a_record_costs_that_record_alone_and_is_named_with_file_and_offset(written, caplog):
    path = only_file(written)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"checkpoint_saved")
    content[place] ^= 1
    path.write_bytes(content)

    log = RunLog.open(written)

    assert steps(log) == list(range(STEPS))
    assert list(log.events("checkpoint_saved")) == []
    ((damage),) = log.damages
    assert damage.begin < place < damage.end
    assert f"{path}: bytes {damage.begin} to {damage.end}" in caplog.text


def test_a_lost_length_does_not_hide_what_follows(written):
    path = only_file(written)
    content = bytearray(path.read_bytes())
    begin = content.rindex(b"checkpoint_saved") - 8 - len('E{"name": "')
    content[begin : begin + 4] = b"\xff\xff\xff\x00"
    path.write_bytes(content)

    assert steps(RunLog.open(written)) == list(range(STEPS))


def test_a_block_of_zeros_is_passed_over(written):
    path = only_file(written)
    content = bytearray(path.read_bytes())
    content[1000:1500] = bytes(500)
    path.write_bytes(content)

    log = RunLog.open(written)

    assert len(steps(log)) >= STEPS - 15
    assert steps(log)[-1] == STEPS - 1
    assert log.damages


def test_without_the_names_values_are_left_out_and_not_given_other_names(written):
    path = only_file(written)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"loss"', b'"lass"'))

    log = RunLog.open(written)

    assert steps(log) == []
    assert len(list(log.events("checkpoint_saved"))) == 1
    assert any("names of its metrics were not read" in damage.problem for damage in log.damages)


@pytest.mark.parametrize("kept", [0, 3, 8, 9, 100, 0.5, -1])
def test_a_tail_torn_anywhere_is_waited_for_and_is_no_damage(written, kept):
    path = only_file(written)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])

    log = RunLog.open(written)

    assert steps(log) == list(range(len(steps(log))))
    assert log.damages == []


def test_a_file_that_is_no_run_log_is_named(written, caplog):
    (RunDirectory(written).log_directory / "notes.runlog").write_text("These are my notes, which I put here.\n" * 100)

    log = RunLog.open(written)

    assert steps(log) == list(range(STEPS))
    assert "notes.runlog: bytes 0 to 8 are left out: a run log begins with" in caplog.text


def test_a_follower_gets_each_record_once_whatever_pieces_the_file_comes_in(written, tmp_path, rng):
    content = only_file(written).read_bytes()
    growing = RunDirectory(tmp_path / "growing")
    growing.log_directory.mkdir(parents=True)
    path, follower = growing.log_directory / "a.runlog", RunLogFollower(growing)
    seen, written_bytes = [], 0
    with path.open("ab", buffering=0) as file:
        while written_bytes < len(content):
            piece = content[written_bytes : written_bytes + rng.randrange(1, 80)]
            written_bytes += file.write(piece)
            seen += follower.poll()

    found = [sourced.record.step for sourced in seen if isinstance(sourced.record, MetricsRecord)]
    assert found == list(range(STEPS))
    assert follower.poll() == []
    assert follower.damages() == []


def test_a_follower_finds_files_that_appear_later(run, source):
    follower = RunLogFollower(run)
    before = follower.poll()
    writer = RunLogWriter(lambda: run.run_log("rank-00000", 1), source)
    writer.event("run_restarted")
    writer.close()

    assert before == []
    assert [sourced.record.name for sourced in follower.poll()] == ["run_restarted"]


def test_pieces_of_a_large_log_are_all_read(written, monkeypatch):
    monkeypatch.setattr(reader_module, "LARGEST_PAYLOAD_BYTES", 300)
    monkeypatch.setattr(reader_module, "_SMALLEST_PIECE_BYTES", 616)
    follower = RunLogFollower(RunDirectory(written))
    pieces = [follower.poll(0) for _ in range(20)]

    assert [sourced.record.step for piece in pieces for sourced in piece] == list(range(STEPS // 2 + 1)) + list(
        range(STEPS // 2, STEPS)
    )
    assert max(len(piece) for piece in pieces) < STEPS // 2


def test_a_piece_without_any_record_does_not_stop_the_reading(written, monkeypatch):
    largest = 300
    monkeypatch.setattr(reader_module, "LARGEST_PAYLOAD_BYTES", largest)
    monkeypatch.setattr(reader_module, "_SMALLEST_PIECE_BYTES", 2 * largest + 16)
    path = only_file(written)
    content = path.read_bytes()
    middle = content.index(b"E{") - 8
    path.write_bytes(content[:middle] + bytes(5000) + content[middle:])
    follower, found = RunLogFollower(RunDirectory(written)), []
    for _ in range(50):
        found += [sourced.record.step for sourced in follower.poll(0)]

    assert found[-1] == STEPS - 1
    assert len(found) == STEPS + 1
    assert sum(damage.end - damage.begin for damage in follower.damages()) == 5000


def test_ranks_are_read_in_the_order_of_time(tmp_path):
    with SyntheticRun(tmp_path / "run") as run:
        for step in range(10):
            run.metrics(step, step, {"loss": 1.0}, rank=1)
        for step in range(10):
            run.metrics(step + 0.5, step, {"loss": 1.0}, rank=0)

    order = [(record.step, source.rank) for source, record in RunLog.open(tmp_path / "run").metrics()]

    assert order == [(step, rank) for step in range(10) for rank in (1, 0)]


def test_a_clock_that_is_set_back_does_not_mix_up_the_steps_of_a_rank(run, source):
    clock = FakeClock(1000.0)
    writer = RunLogWriter(lambda: run.run_log("rank-00000", 0), source, clock)
    for step in range(10):
        clock.advance(1)
        if step == 5:
            clock.set_wall(500.0)
        writer.metrics(step, ("loss",), (1.0,))
    writer.close()

    assert [record.step for _, record in RunLog.open(run.path).metrics()] == list(range(10))


def test_a_directory_without_a_run_says_so(tmp_path):
    with pytest.raises(InputFileError, match="holds no run"):
        RunLog.open(tmp_path)


def test_a_log_that_is_deleted_under_a_follower_ends_quietly(run, source):
    follower = RunLogFollower(run)
    writer = RunLogWriter(lambda: run.run_log("rank-00000", 0), source)
    writer.event("run_started")
    found = follower.poll()
    shutil.rmtree(run.path)
    writer.close()

    assert (len(found), follower.poll()) == (1, [])

"""A synthetic run is a real run log, at the times that the test chose."""

from __future__ import annotations

from production_ml.monitoring.run_log import RunLog
from production_ml.testing.synthetic_run import START, SyntheticRun, write_recovered_run


def test_what_was_written_is_read_in_the_order_of_its_times(tmp_path):
    with SyntheticRun(tmp_path / "run", project="p", world_size=3) as run:
        run.metrics(2.0, 7, {"loss": 0.5}, rank=1)
        run.event(1.0, "alert", level="warning", message="m", title="t")
        run.launcher_event(3.0, "launch_finished", outcome="succeeded")

    log = RunLog.open(tmp_path / "run")

    told = [(found.source.role, found.source.rank, found.record.wall_seconds - START) for found in log.records]
    assert told == [("rank", 0, 1.0), ("rank", 1, 2.0), ("launcher", 0, 3.0)]
    assert {found.source.world_size for found in log.records} == {3}
    assert log.identity.project == "p"


def test_a_recovered_run_ends_at_its_last_step_whatever_the_step_it_was_killed_in(tmp_path):
    for killed_at in (1, 20, 59):
        write_recovered_run(tmp_path / str(killed_at), steps=60, killed_at=killed_at)

        steps = [record.step for _, record in RunLog.open(tmp_path / str(killed_at)).metrics()]
        assert (min(steps), max(steps)) == (0, 59)

"""The log is told of a checkpoint's life with the facts that a person or a report needs."""

from __future__ import annotations

from production_ml.fault_tolerance import CheckpointManager


def events(caplog, name: str) -> list[dict[str, object]]:
    return [record.fields for record in caplog.records if getattr(record, "event", "") == name]


def test_events_carry_the_facts(directory, trained, fresh, caplog):
    model, optimizer = trained
    with CheckpointManager(directory.path, save_best=False) as manager:
        manager.save(model=model, optimizer=optimizer, step=5)
    CheckpointManager(directory.path).load_latest(*fresh())

    [saved], [loaded] = events(caplog, "checkpoint_saved"), events(caplog, "checkpoint_loaded")
    assert saved["step"] == loaded["step"] == 5
    assert saved["path"] == loaded["path"] == str(directory.committed(5))
    assert saved["size_bytes"] == directory.manifest(5).size_bytes
    assert 0 <= saved["stall_seconds"] <= saved["duration_seconds"]


def test_a_committed_step_is_reported_though_a_policy_fails_after_it(directory, trained, caplog):
    def broken(checkpoints: object) -> set[int]:
        raise LookupError("a policy of the user's own")

    with CheckpointManager(directory.path, save_best=False, keep=[broken]) as manager:
        manager.save(model=trained[0], step=5)

    assert [event["step"] for event in events(caplog, "checkpoint_saved")] == [5]


def test_a_start_from_nothing_tells_where_it_has_looked(tmp_path, monkeypatch, fresh, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)

    CheckpointManager("checkpoints").load_latest(*fresh())

    told = [record.getMessage() for record in caplog.records if "Nothing to resume" in record.getMessage()]
    assert told == [f"Nothing to resume in {tmp_path}/checkpoints: training starts from step 0"]

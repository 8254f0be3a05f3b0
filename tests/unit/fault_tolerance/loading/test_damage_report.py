"""The warning says what was wrong, where the run resumes, how much is redone, and how to check the disk."""

from __future__ import annotations

from pathlib import Path

from production_ml.fault_tolerance.checkpoint_format.verification import Damage
from production_ml.fault_tolerance.loading.damage_report import describe

DAMAGE = Damage(300, "c/step-00000300/rank-00001.safetensors", "model.w", "does not match its hash")


def test_the_warning_reads_as_one_message():
    text = describe(300, [DAMAGE], resumed_step=200, kept_in=Path("c/quarantine/x"), directory=Path("c"))

    assert text.splitlines() == [
        "c/step-00000300/rank-00001.safetensors: tensor 'model.w' does not match its hash",
        "Resuming from step 200, the newest good checkpoint: 100 steps will be redone.",
        "The damaged one is kept in c/quarantine/x.",
        "Check the disk with: production-ml checkpoint verify c",
    ]


def test_a_start_from_nothing_is_loud():
    text = describe(300, [DAMAGE], resumed_step=None, kept_in=None, directory=Path("c"))

    assert "NO GOOD CHECKPOINT IS LEFT: training starts from step 0, and 300 steps will be redone." in text
    assert "could not be moved" in text


def test_of_many_damaged_ones_with_none_good_only_the_newest_is_loud():
    text = describe(200, [DAMAGE], resumed_step=None, kept_in=None, directory=Path("c"), is_first=False)

    assert "NO GOOD CHECKPOINT" not in text
    assert "redone" not in text


def test_a_long_list_is_cut():
    text = describe(300, [DAMAGE] * 9, resumed_step=200, kept_in=None, directory=Path("c"))

    assert text.count("does not match") == 5
    assert "and 4 more" in text

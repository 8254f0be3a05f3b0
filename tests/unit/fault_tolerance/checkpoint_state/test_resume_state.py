"""What a load gives back is a dict, and says what was passed over."""

from __future__ import annotations

from production_ml.fault_tolerance.checkpoint_format.verification import Damage
from production_ml.fault_tolerance.checkpoint_state.resume_state import ResumeState


def test_it_is_a_dict_of_its_own_that_knows_of_the_damage():
    values = {"step": 3, "epoch": 1}
    damage = Damage(step=4, file="step-00000004/manifest.json", tensor=None, problem="the file is missing")

    state = ResumeState(values, [damage])
    state["step"] = 9

    assert values["step"] == 3
    assert state == {"step": 9, "epoch": 1}
    assert state.damaged == [damage]

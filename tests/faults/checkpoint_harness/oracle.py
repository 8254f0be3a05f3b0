"""The judge: a fresh process loads, and what it finds is held against what was promised, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .scene import NEWEST, RECOVERY, Scene, Story


class Outcome(StrEnum):
    """What a fault came to, the good ones first."""

    SURVIVED = "survived"
    """The newest good state was loaded; nothing that was promised was lost."""
    DETECTED = "detected"
    """The damage was reported, and the newest good state loaded (or the load refused with an error that says why)."""
    UNNOTICED = "unnoticed"
    """Damage that changed nothing in the state was not reported."""
    SILENT_WRONG = "silent wrong"
    """State was loaded that was never saved at the step it claims."""
    LOST_GOOD = "lost good"
    """A promised good checkpoint was not what was loaded, or was passed over without a word."""
    FALSE_ALARM = "false alarm"
    """A system that shows no unfinished checkpoint called a sound one damaged, and may have put it aside."""
    STUCK = "stuck"
    """After the fault no checkpoint could be saved, or loaded again."""
    CRASHED = "crashed"
    """An error that the system does not raise on purpose reached the user."""
    HUNG = "hung"


GOOD = frozenset({Outcome.SURVIVED, Outcome.DETECTED})


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    detail: str = ""


def judge(scene: Scene, story: Story) -> Verdict:
    """Load in a fresh process, save again, load that, and say what the fault came to."""
    if story.hung:
        return Verdict(Outcome.HUNG, scene.last_words())
    if story.wrong:
        return Verdict(Outcome.SILENT_WRONG, story.wrong[0])
    if story.lost:
        return Verdict(Outcome.LOST_GOOD, story.lost[0])
    if story.false_alarms:
        return Verdict(Outcome.FALSE_ALARM, story.false_alarms[0])
    verdict = _judge_load(scene, story)
    if verdict.outcome not in GOOD:
        return verdict
    if story.crashes:
        return Verdict(Outcome.CRASHED, story.crashes[0])
    trouble = _trouble_after_recovery(scene)
    return Verdict(Outcome.STUCK, trouble) if trouble else verdict


def _judge_load(scene: Scene, story: Story) -> Verdict:
    messages, status, _ = scene.run(scene.load())
    if status is None:
        return Verdict(Outcome.HUNG, "load")
    if not messages:
        return Verdict(Outcome.CRASHED, scene.last_words())
    if messages[0][0] == "refused":
        _, is_own, text = messages[0]
        if not is_own:
            return Verdict(Outcome.CRASHED, text)
        return Verdict(Outcome.DETECTED if story.may_refuse else Outcome.LOST_GOOD, text)
    _, step, who, reported, wrong = messages[0]
    if wrong or (step and step not in story.begun):
        return Verdict(Outcome.SILENT_WRONG, f"step {step} of {who}: {', '.join(wrong[:3]) or 'never saved'}")
    if reported and scene.system.hides_unfinished and not (story.is_newest_damaged or story.may_report):
        return Verdict(Outcome.FALSE_ALARM, reported[0])
    if step and who not in story.begun[step]:
        return Verdict(Outcome.LOST_GOOD, f"step {step} is as it was before it was saved anew")
    return _judge_step(story, step, [*story.reported, *reported] if story.may_refuse else reported)


def _judge_step(story: Story, step: int, reported: list[str]) -> Verdict:
    said = reported[0] if reported else "nothing reported"
    if step < story.promised:
        return Verdict(Outcome.LOST_GOOD, f"step {step} loaded, {story.promised} was good; {said}")
    if not story.is_newest_damaged:
        return Verdict(Outcome.DETECTED if reported else Outcome.SURVIVED, said if reported else "")
    if reported:
        return Verdict(Outcome.DETECTED, said)
    if step == NEWEST:
        return Verdict(Outcome.UNNOTICED, "the damaged checkpoint was loaded, and its state is right")
    return Verdict(Outcome.LOST_GOOD, f"step {step} loaded in place of a damaged newer one without a word")


def _trouble_after_recovery(scene: Scene) -> str:
    messages, status, _ = scene.run(scene.recover())
    if status != 0 or not any(message[0] == "saved" for message in messages):
        failures = [message[3] for message in messages if message[0] == "failed"]
        return f"cannot save: {failures[0] if failures else scene.last_words()}"
    messages, status, _ = scene.run(scene.load())
    if status != 0 or not messages or messages[0][0] != "loaded":
        return f"cannot load: {scene.last_words()}"
    _, step, _, _, wrong = messages[0]
    if step != RECOVERY or wrong:
        return f"loaded step {step} after step {RECOVERY} was saved"
    return ""

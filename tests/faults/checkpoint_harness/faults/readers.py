"""A process that loads while another saves, replaces and prunes: an evaluation beside a training."""

from __future__ import annotations

from collections.abc import Callable

from ..processes import Child, Tell
from ..scene import HANG_SECONDS, Scene, Story

_LOADS = 5


def beside_a_training(scene: Scene) -> Story:
    """Every load has to find something whole, and must do no harm to what is being written."""
    steps = range(3, 9)
    reader = Child(_load_often(scene), log=scene.log)
    trainer = Child(scene.train(steps), log=scene.log.with_suffix(".training.log"))
    messages, status = reader.ended(timeout_seconds=HANG_SECONDS, beside=trainer)
    story = Story(where=f"{_LOADS} loads while steps {steps[0]} to {steps[-1]} were saved")
    for kind, step, *rest in messages:
        if kind == "refused":
            story.lost.append(f"a load beside a training failed: {rest[-1]}")
        elif rest[1] and scene.system.hides_unfinished:
            story.false_alarms += rest[1]
        elif rest[-1]:
            story.wrong.append(f"step {step}: {', '.join(rest[-1][:3])}")
        elif step == 0:
            story.lost.append("a load beside a training found nothing")
    if status is None:
        story.hung = True
    messages, status = trainer.ended(timeout_seconds=HANG_SECONDS)
    scene.log.with_suffix(".training.log").unlink()
    return scene.tell(story, messages, status, was_killed=False)


def _load_often(scene: Scene) -> Callable[[Tell], None]:
    def body(tell: Tell) -> None:
        for _ in range(_LOADS):
            scene.load()(tell)

    return body

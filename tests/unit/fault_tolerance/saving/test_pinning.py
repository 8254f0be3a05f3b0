"""A pin is taken out before the memory under it goes, however the image is let go; the driver is stood in for."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import pytest
import torch

from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.pinning import PinnedImage
from production_ml.fault_tolerance.saving.shard_plan import ShardPlanner
from production_ml.fault_tolerance.saving.staging import Staging


@dataclass
class Driver:
    """The CUDA runtime, as far as pins go."""

    answer: int = 0
    pinned: list[int] = field(default_factory=list)
    asked: int = 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        self.asked += 1
        if not self.answer:
            self.pinned.append(address)
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's name
        self.pinned.remove(address)
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    return driver


def test_an_image_that_is_dropped_without_a_word_is_unpinned(driver):
    image, pin = ShardImage(), PinnedImage()
    image.resize(1)
    pin.pin(image)
    assert len(driver.pinned) == 1

    del image
    gc.collect()
    pin.release()

    assert driver.pinned == []


def test_a_pin_that_is_released_is_taken_out_once(driver):
    image, pin = ShardImage(), PinnedImage()
    image.resize(1)
    pin.pin(image)

    pin.release()
    image.close()
    del image

    assert (driver.pinned, pin.is_pinned) == ([], False)


def test_where_the_driver_refuses_it_is_asked_and_told_of_once(driver, caplog):
    driver.answer = 2
    staging = Staging()
    contents = ShardPlanner(rank=0).plan({"x": torch.ones(3)}).contents

    for _ in range(3):
        staging.reserve(contents, for_devices=True)

    assert driver.asked == 1
    assert caplog.text.count("cannot be pinned") == 1
    staging.close()

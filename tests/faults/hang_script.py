"""A job of two ranks that hangs in one of many ways, in its first attempt: `hang_script.py KIND STEP VICTIM`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from production_ml import fault_tolerance

STEPS = 12
KIND, AT, VICTIM = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ATTEMPT = int(os.environ.get("PRODUCTION_ML_ATTEMPT", os.environ["TORCHELASTIC_RESTART_COUNT"]))
STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.02")) if ATTEMPT == 0 else 0.0
PAUSE_SECONDS = 4.0
IS_ILL = ATTEMPT == 0 and int(os.environ["RANK"]) == VICTIM


class Samples(Dataset):
    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> torch.Tensor:
        if KIND == "data-worker" and IS_ILL and index == AT:
            sleep_for_ever_in_the_dataset()
        return torch.ones(4)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.calls = 0

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        if IS_ILL and self.calls == AT + 1:
            fall_ill()
        return self.layer(batch)


def fall_ill() -> None:
    if KIND == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif KIND == "loop":
        loop_for_ever()
    elif KIND == "gil":
        hold_the_gil_for_ever()


def loop_for_ever() -> None:
    while True:
        pass


def hold_the_gil_for_ever() -> None:
    library = ctypes.PyDLL(None)  # unlike CDLL, PyDLL keeps the GIL
    mutex = ctypes.create_string_buffer(128)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def sleep_for_ever_in_the_dataset() -> None:
    time.sleep(1_000_000)


def wait_for_what_never_comes() -> None:
    dist.recv(torch.ones(1), src=1 - VICTIM)


def look_at_every_sample() -> None:
    """Long, busy, and between two steps."""
    until = time.monotonic() + PAUSE_SECONDS
    while time.monotonic() < until:
        torch.ones(64, 64) @ torch.ones(64, 64)


def evaluate() -> None:
    look_at_every_sample()


def save_to_a_slow_disk() -> None:
    time.sleep(PAUSE_SECONDS)


def pause() -> None:
    """What takes far longer than a step and is no hang."""
    if KIND == "said-pause":
        with fault_tolerance.paused():
            time.sleep(PAUSE_SECONDS)
    elif KIND == "evaluation-of-all":
        look_at_every_sample()
    elif KIND == "evaluation-of-one" and IS_ILL:
        evaluate()
    elif KIND == "slow-save-of-one" and IS_ILL:
        save_to_a_slow_disk()


def main() -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(Model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Samples(), batch_size=1, num_workers=1 if KIND == "data-worker" else 0)
    if KIND == "slow-start":
        time.sleep(PAUSE_SECONDS)
    limits = fault_tolerance.HangLimits(floor_seconds=1.0)
    with fault_tolerance.HangWatch(limits=limits):  # without effect under a launcher that watches
        for step, batch in enumerate(loader):
            time.sleep(STEP_SECONDS)
            optimizer.zero_grad()
            model(batch).sum().backward()
            if KIND == "skip" and IS_ILL and step == AT:
                wait_for_what_never_comes()
            else:
                dist.all_reduce(torch.ones(1))
            optimizer.step()
            if step == AT:
                pause()
    print(f"rank {dist.get_rank()} finished in attempt {ATTEMPT}", flush=True)
    dist.destroy_process_group()
    os._exit(0)  # on a busy machine gloo under DDP aborts one interpreter in twenty at its exit, hang or no hang


if __name__ == "__main__":
    main()

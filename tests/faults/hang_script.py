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

import production_ml.fault_tolerance as fault_tolerance

STEPS = 12
STEP_SECONDS = 0.05
KIND, AT, VICTIM = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ATTEMPT = int(os.environ.get("PRODUCTION_ML_ATTEMPT", os.environ["TORCHELASTIC_RESTART_COUNT"]))
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
    ctypes.PyDLL(None).sleep(1_000_000)  # unlike CDLL, PyDLL keeps the GIL


def sleep_for_ever_in_the_dataset() -> None:
    time.sleep(1_000_000)


def wait_for_what_never_comes() -> None:
    dist.recv(torch.ones(1), src=1 - VICTIM)


def look_at_all(model: nn.Module) -> None:
    """Long, busy, and between two steps: an evaluation."""
    until = time.monotonic() + float(os.environ["PAUSE_SECONDS"])
    while time.monotonic() < until:
        torch.ones(64, 64) @ torch.ones(64, 64)


def main() -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(Model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Samples(), batch_size=1, num_workers=1 if KIND == "data-worker" else 0)
    evaluate = look_at_all  # under the name that a stack shows: look_at_all says nothing
    with fault_tolerance.HangWatch(**eval(os.environ.get("HANG_WATCH", "{}"))):
        for step, batch in enumerate(loader):
            time.sleep(STEP_SECONDS)
            optimizer.zero_grad()
            model(batch).sum().backward()
            if KIND == "skip" and IS_ILL and step == AT:
                wait_for_what_never_comes()
            else:
                dist.all_reduce(torch.ones(1))
            optimizer.step()
            if KIND == "said-pause" and step == AT:
                with fault_tolerance.paused():
                    evaluate(model)
            if KIND == "unsaid-pause" and step == AT:
                evaluate(model)
    print(f"rank {dist.get_rank()} finished in attempt {ATTEMPT}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

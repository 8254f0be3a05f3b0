"""A training loop that goes on after a failure, under any number of ranks, and saves, logs and stops by itself."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.errors import ConfigError
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.checkpoint_manager import CheckpointManager
from production_ml.fault_tolerance.farewell import end_well
from production_ml.fault_tolerance.recovery.hang import paused
from production_ml.fault_tolerance.step_consensus import sum_over_ranks
from production_ml.monitoring import TrainingMonitor
from production_ml.training.batch_pieces import pieces_of, to_device
from production_ml.training.early_stopping import EarlyStopping
from production_ml.training.elastic_sampler import ElasticSampler
from production_ml.training.strategies import STRATEGIES, TrainingStrategy, choose_strategy
from production_ml.training.time_limit import TimeLimit

_LOG: Final = logging.getLogger(__name__)
Loss = torch.Tensor | Mapping[str, Any]
LossFunction = Callable[[nn.Module, Any], Loss]
"""`loss_fn(model, batch)`: the mean loss of a piece of a batch, or a dict of things to log that holds it as "loss"."""
StopReason = Literal["max_steps", "max_epochs", "early_stopping", "time_limit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """How a training ended."""

    steps: int
    """Steps made in all, those before a resume included."""
    epochs: int
    """Epochs completed."""
    reason: StopReason
    resumed_from_step: int
    """0 for a training that began here."""


class ElasticTraining:
    """Trains a model on all ranks together, from wherever the newest good checkpoint left off.

    Each part also works alone in a loop of one's own; this is the loop that composes them. Under a launcher it brings
    the ranks together itself. The global batch stays the same under any number of ranks, and so does the order of the
    data: after a restart with fewer or more of them each sample is still seen once per epoch.

    Args:
        model: On the device that it is to be trained on. Wrapped or sharded already, or plain.
        optimizer: Of the model's parameters.
        dataset: Map-style, with a length.
        global_batch_size: Samples per step over all ranks.
        checkpoints: Where the state is saved, and when (`save_every`).
        monitor: Where losses and learning rates are logged.
        strategy: A name of the family `STRATEGIES`, or "auto" for what the model is already: sharded, wrapped, or
            plain, of which several ranks get a copy each (DDP).
        micro_batch_size: The most samples that a rank puts through the model at once; None for its whole share.
        seed: Decides the order of the data.
        num_workers: Processes that load data beside each rank.
        collate_fn: As for a DataLoader.
        schedule: A learning-rate schedule, which is stepped after each step.
        evaluate: Gives metrics of the model; it is called on all ranks, with the model in evaluation mode.
        evaluate_every: After how many steps.
        early_stopping: Fed with the metric `stop_on` of each evaluation.
        stop_on: The name of that metric.
        time_limit: Ends training in time.
        state: More objects with `state_dict()` and `load_state_dict()` to save and resume, by name.

    Raises:
        ConfigError: An argument cannot work.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        dataset: Sized,
        global_batch_size: int,
        checkpoints: CheckpointManager,
        monitor: TrainingMonitor | None = None,
        strategy: str = "auto",
        micro_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        schedule: Any = None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        evaluate_every: int | None = None,
        early_stopping: EarlyStopping | None = None,
        stop_on: str = "validation/loss",
        time_limit: TimeLimit | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        _check(micro_batch_size, evaluate, evaluate_every, early_stopping)
        join_the_other_ranks(model)
        self._optimizer = optimizer
        self._checkpoints = checkpoints
        self._monitor = monitor
        self._micro_batch_size = micro_batch_size
        self._sampler = ElasticSampler(dataset, global_batch_size, seed=seed)
        self._loader: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type] # anything with a length and places will do
            batch_sampler=self._sampler,
            num_workers=num_workers,
            collate_fn=collate_fn,
            persistent_workers=num_workers > 0,
            pin_memory=_device_of(model).type == "cuda",
            # Without one of its own a loader draws from torch's, at each start amid an epoch too: dropout would differ.
            generator=torch.Generator().manual_seed(seed),
        )
        self._strategy: TrainingStrategy = STRATEGIES.load(choose_strategy(model) if strategy == "auto" else strategy)()
        self._model = self._strategy.prepare(model, optimizer)
        self._device = _device_of(self._model)
        self._schedule = schedule
        self._evaluate = evaluate
        self._evaluate_every = evaluate_every
        self._early_stopping = early_stopping
        self._stop_on = stop_on
        self._time_limit = time_limit
        parts = {"schedule": schedule, "early_stopping": early_stopping, "time_limit": time_limit, **(state or {})}
        self._state = {"data": self._sampler, **{name: part for name, part in parts.items() if part is not None}}
        self._metrics: dict[str, float] = {}

    def run(
        self, loss_fn: LossFunction, *, max_steps: int | None = None, max_epochs: int | None = None
    ) -> TrainingResult:
        """Resume, train, and return when one of the limits is reached; the last step is saved by then.

        Args:
            loss_fn: See `LossFunction`. Its mean has to be over the samples it is given.
            max_steps: Steps in all, those before a resume included.
            max_epochs: Epochs in all.

        Raises:
            ConfigError: No limit is given, or the loss is not what it has to be.
            CheckpointError: As `CheckpointManager.load_latest` and `save`.
        """
        if max_steps is None and max_epochs is None:
            raise ConfigError("max_steps", None, "training would never end", cure="Give max_steps or max_epochs.")
        resumed = self._checkpoints.load_latest(self._model, self._optimizer, **self._state)
        step = resumed_from_step = int(resumed["step"])
        saved = step
        reason = self._limit_reached(step, max_steps, max_epochs)
        while reason is None:
            for batch in self._sampler.epoch(self._loader):
                loss = self._train_step(loss_fn, batch)
                step += 1
                has_ended_epoch = len(self._sampler) == 0
                self._log(step, loss)
                reason = self._look_up(step)
                if self._save(step, epoch_ended=self._sampler.current_epoch + 1 if has_ended_epoch else None):
                    saved = step
                if max_steps is not None and step >= max_steps:
                    reason = reason or "max_steps"
                if reason is not None:
                    break
            reason = reason or self._limit_reached(step, max_steps, max_epochs)
        if saved != step:
            self._checkpoints.save(model=self._model, optimizer=self._optimizer, step=step, **self._saved())
        self._checkpoints.wait()
        epochs = self._sampler.current_epoch + (len(self._sampler) == 0)
        log_event(_LOG, "training_ended", f"Training ended at step {step} ({reason})", step=step, reason=reason)
        return TrainingResult(steps=step, epochs=epochs, reason=reason, resumed_from_step=resumed_from_step)

    def _train_step(self, loss_fn: LossFunction, batch: Any) -> dict[str, torch.Tensor]:
        """One step; what is to be logged of it, as this rank's part of the mean over the global batch."""
        self._model.train()
        weight = self._sampler.current_weight
        pieces = list(pieces_of(to_device(batch, self._device), self._micro_batch_size))
        size = sum(count for _, count in pieces)
        logged: dict[str, torch.Tensor] = {}
        for index, (piece, count) in enumerate(pieces):
            with self._strategy.accumulating(self._model, is_last=index == len(pieces) - 1):
                loss, others = _parts_of(loss_fn(self._model, piece))
                self._strategy.backward(self._model, loss * (weight * count / size))
            for name, value in {"loss": loss, **others}.items():
                part = torch.as_tensor(value).detach() * (weight * count / size)
                logged[name] = logged[name] + part if name in logged else part
        self._strategy.step(self._model, self._optimizer)
        if self._schedule is not None:
            self._schedule.step()
        return logged

    def _look_up(self, step: int) -> StopReason | None:
        """Evaluate if it is time, and hear whether all ranks together are to stop."""
        if self._evaluate is not None and self._evaluate_every and step % self._evaluate_every == 0:
            self._metrics = self._measure(self._evaluate)
            if self._monitor is not None:
                self._monitor.log(self._metrics, step)
        parts = [part for part in (self._early_stopping, self._time_limit) if part is not None]
        if not parts:
            return None
        sums = sum_over_ranks({name: value for part in parts for name, value in part.values().items()})
        if self._early_stopping is not None and self._early_stopping.is_due(sums):
            return "early_stopping"
        return "time_limit" if self._time_limit is not None and self._time_limit.is_due(sums) else None

    def _measure(self, evaluate: Callable[[nn.Module], Mapping[str, float]]) -> dict[str, float]:
        self._model.eval()
        # Longer than a step, and no hang.
        with torch.no_grad(), paused():
            metrics = {name: float(value) for name, value in evaluate(self._model).items()}
        if self._early_stopping is not None:
            if self._stop_on not in metrics:
                known = ", ".join(sorted(metrics))
                raise ConfigError("stop_on", self._stop_on, f"evaluate() gives no such metric, but {known}")
            self._early_stopping.update(metrics[self._stop_on])
        return metrics

    def _log(self, step: int, logged: Mapping[str, torch.Tensor]) -> None:
        if self._monitor is not None:
            rates = {"train/lr": float(self._optimizer.param_groups[0]["lr"])}
            self._monitor.log({**{f"train/{name}": value for name, value in logged.items()}, **rates}, step)

    def _save(self, step: int, *, epoch_ended: int | None) -> bool:
        return self._checkpoints.save_if_due(
            model=self._model, optimizer=self._optimizer, step=step, epoch_ended=epoch_ended, **self._saved()
        )

    def _saved(self) -> dict[str, Any]:
        return {"metrics": self._metrics, **self._state}

    def _limit_reached(self, step: int, max_steps: int | None, max_epochs: int | None) -> StopReason | None:
        if max_steps is not None and step >= max_steps:
            return "max_steps"
        epochs = self._sampler.current_epoch + (len(self._sampler) == 0)
        return "max_epochs" if max_epochs is not None and epochs >= max_epochs else None


def join_the_other_ranks(model: nn.Module) -> None:
    """Make the process group that a launcher asks for, unless it is there: NCCL for a model on a GPU, else gloo."""
    if DistributedEnv.read().world_size == 1 or dist.is_initialized():
        return
    dist.init_process_group("nccl" if _device_of(model).type == "cuda" else "gloo")
    end_well()
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _parts_of(loss: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    others = dict(loss) if isinstance(loss, Mapping) else {"loss": loss}
    value = others.pop("loss", None)
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        cure = 'Return the mean loss as a tensor of one element, or a dict that holds it as "loss".'
        raise ConfigError("loss_fn", type(loss).__name__, "gives no loss", cure=cure)
    return value.reshape(()), others


def _check(
    micro_batch_size: int | None, evaluate: Any, evaluate_every: int | None, early_stopping: EarlyStopping | None
) -> None:
    for name, value in (("micro_batch_size", micro_batch_size), ("evaluate_every", evaluate_every)):
        if value is not None and value < 1:
            raise ConfigError(name, value, "must be at least 1")
    if (evaluate is None) != (evaluate_every is None):
        raise ConfigError("evaluate_every", evaluate_every, "goes together with evaluate: give both or none")
    if early_stopping is not None and evaluate is None:
        raise ConfigError("early_stopping", early_stopping, "needs evaluate: it looks at what that gives")

"""`checkpoint export`: one checkpoint, of whatever world size, in a form that others read."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from production_ml.cli.checkpoint.arguments import (
    AsJson,
    Directory,
    complete_step,
    existing_step,
    open_directory,
    with_a_way_on,
)
from production_ml.cli.checkpoint.display import count_text, progress, size_text
from production_ml.core.errors import ConfigError, InputFileError

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
    from production_ml.fault_tolerance.interchange.consolidated import Exported


class Format(StrEnum):
    """What a checkpoint is turned into, or made from."""

    SAFETENSORS = "safetensors"
    DCP = "dcp"
    TORCH = "torch"


def export(
    directory: Directory,
    step_or_out: Annotated[
        str | None,
        typer.Argument(metavar="STEP", help="The step; if left out, the newest.", autocompletion=complete_step),
    ] = None,
    out: Annotated[
        str | None, typer.Argument(metavar="OUT", help="The file, or for dcp the directory, to write; never left out.")
    ] = None,
    to: Annotated[Format, typer.Option("--to", help="The format.")] = Format.SAFETENSORS,
    with_optimizer: Annotated[
        bool,
        typer.Option("--with-optimizer", help="safetensors: the optimizer and the extras too. The others have them."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there, at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as one safetensors file, one torch.save file, or a directory of torch.distributed.checkpoint.

    Every tensor is verified on the way. The output appears under its name when
    it is complete and durable; an export that is interrupted leaves nothing.

    safetensors: the model's weights by their plain names, for
    model.load_state_dict(load_file(OUT)). With --with-optimizer everything else
    stands beside them, as optimizer.… and extra.….

    torch: a dict of model, optimizer, step, metrics and the extras, for
    torch.load(OUT, weights_only=True).

    dcp: the same, for torch.distributed.checkpoint.load with any number of ranks.

    Examples:
      production-ml checkpoint export checkpoints model.safetensors

      production-ml checkpoint export checkpoints 300 --to torch step300.pt
    """
    opened = open_directory(directory)
    step, target = _parse(opened, step_or_out, out)
    if target.is_file() and not overwrite:
        raise InputFileError(target, "exists already", cure="Give another name, or replace it with --overwrite.")
    if with_optimizer and to is not Format.SAFETENSORS:
        raise ConfigError("--with-optimizer", True, f"is for safetensors: --to {to.value} has the optimizer anyway")
    with with_a_way_on((opened, step)):
        exported = _export(opened, step, target, to, with_optimizer=with_optimizer)
    if as_json:
        facts = {"step": step, "format": to.value, **asdict(exported), "path": str(exported.path)}
        typer.echo(json.dumps(facts, indent=2))
        return
    counted = count_text(exported.tensors, "tensor")
    typer.echo(f"Wrote step {step} to {exported.path} ({counted}, {size_text(exported.size_bytes)})")
    if exported.left_out:
        names = ", ".join(exported.left_out)
        typer.echo(f"Note: left out of the file, because they are no tensors: {names}", err=True)


def _parse(directory: CheckpointPlace, step_or_out: str | None, out: str | None) -> tuple[int, Path]:
    """STEP may be left out, though it stands in the middle."""
    if step_or_out is None:
        raise ConfigError("OUT", None, "is missing", cure="The order is: DIR [STEP] OUT")
    if out is None:
        return existing_step(directory, None), Path(step_or_out)
    if not (step_or_out.isascii() and step_or_out.isdigit()):
        raise ConfigError("STEP", step_or_out, "must be a whole number", cure="The order is: DIR [STEP] OUT")
    return existing_step(directory, int(step_or_out)), Path(out)


def _export(directory: CheckpointPlace, step: int, target: Path, to: Format, *, with_optimizer: bool) -> Exported:
    from production_ml.fault_tolerance.interchange.consolidated import write_consolidated
    from production_ml.fault_tolerance.interchange.dcp_directory import write_dcp_directory
    from production_ml.fault_tolerance.interchange.torch_file import write_torch_file

    size_bytes = directory.manifest(step).size_bytes
    with progress(f"step {step} to {to.value}", size_bytes) as on_bytes:
        if to is Format.SAFETENSORS:
            return write_consolidated(directory, step, target, with_optimizer=with_optimizer, on_bytes=on_bytes)
        write = write_torch_file if to is Format.TORCH else write_dcp_directory
        return write(directory, step, target, on_bytes=on_bytes)

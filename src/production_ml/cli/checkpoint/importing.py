"""`checkpoint import`: a verified checkpoint from what others saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from production_ml.cli.checkpoint.arguments import AsJson, complete_directory
from production_ml.cli.checkpoint.display import count_text, progress, size_text
from production_ml.cli.checkpoint.exporting import Format
from production_ml.core.errors import ConfigError

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_format import Manifest
    from production_ml.fault_tolerance.interchange.importing import Source


def import_checkpoint(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The file, or DCP directory, to read.")],
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="The checkpoint_dir to put it in.", autocompletion=complete_directory)
    ],
    from_format: Annotated[
        Format | None, typer.Option("--from", help="The format of SRC; if left out, what it looks like.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="The step to save it as; if left out, the one that SRC names.")
    ] = None,
    model_key: Annotated[
        str | None, typer.Option(help="Where the model's state is in SRC, such as state_dict or app.model.")
    ] = None,
    model_only: Annotated[bool, typer.Option("--model-only", help="Leave out everything but the model.")] = False,
    strip_prefix: Annotated[
        str, typer.Option(help="Take this off the beginning of parameters' names, such as module.")
    ] = "",
    optimizer_class: Annotated[
        str | None,
        typer.Option(help="The optimizer's class, such as AdamW: then load_latest(model, optimizer) resumes it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a checkpoint from a directory of torch.distributed.checkpoint, a torch.save file or a safetensors file.

    Nothing of SRC is run: torch.save files are read with weights_only=True, and
    DCP's .metadata, which is a pickle, through a closed list of DCP's own
    classes. What is neither the model nor the optimizer becomes an extra that
    load_latest gives back by its name. The checkpoint is committed when it is
    durable, and read back to verify it.

    Examples:
      production-ml checkpoint import dcp-directory checkpoints --step 300

      production-ml checkpoint import last.ckpt checkpoints --step 9 --model-only
    """
    from production_ml.fault_tolerance.checkpoint_format.places import open_place
    from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig
    from production_ml.fault_tolerance.interchange.importing import commit_import, open_source

    config = ImportConfig(
        model_key=model_key, model_only=model_only, strip_prefix=strip_prefix, optimizer_class=optimizer_class
    )
    opened = open_source(source, from_format.value if from_format else None, config)
    chosen = opened.found.step if step is None else step
    if chosen is None:
        raise ConfigError("--step", None, "is needed, because SRC does not say which step it is", cure="Add: --step N")
    place = open_place(directory)
    with progress(f"{source.name} to step {chosen}", opened.size_bytes) as on_bytes:
        manifest = commit_import(opened, place, chosen, on_bytes=on_bytes)
    _tell(opened, manifest, str(place.committed(chosen)), as_json=as_json)


def _tell(source: Source, manifest: Manifest, path: str, *, as_json: bool) -> None:
    values: dict[str, Any] = manifest.values
    if as_json:
        facts = {
            "step": manifest.step,
            "path": path,
            "size_bytes": manifest.size_bytes,
            "tensors": len(manifest.tensors),
            "model": len(values["model"]),
            "optimizer": values["optimizer"]["class"] if values["optimizer"] else None,
            "extra": sorted(values["extra"]),
            "notes": source.found.notes,
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    size = size_text(manifest.size_bytes)
    typer.echo(f"Committed step {manifest.step} as {path} ({count_text(len(manifest.tensors), 'tensor')}, {size})")
    typer.echo(f"  model: {count_text(len(values['model']), 'entry').replace('entrys', 'entries')}")
    typer.echo(f"  optimizer: {values['optimizer']['class'] if values['optimizer'] else 'none'}")
    typer.echo(f"  extra: {', '.join(sorted(values['extra'])) or 'none'}")
    for note in source.found.notes:
        typer.echo(f"Note: {note}", err=True)

"""What the workers are to run: found before anything is started, so that a typing error costs no attempt."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import sys
from pathlib import Path

from production_ml.core.errors import ConfigError, InputFileError
from production_ml.storage.names import safe_name

_MEANING = "Nothing was started."


def check_script(script: str) -> None:
    """A Python file that can be read.

    Raises:
        InputFileError: It is missing, a directory or unreadable.
    """
    path = Path(script)
    if path.is_dir():
        cure = "Name the script inside it, or a package with -m."
        raise InputFileError(path, "is a directory, not a training script", meaning=_MEANING, cure=cure)
    if not path.exists():
        cure = f"Scripts are looked for from {Path.cwd()}; a module is named with -m, another program with --no-python."
        raise InputFileError(path, "there is no such training script", meaning=_MEANING, cure=cure)
    if not os.access(path, os.R_OK):
        raise InputFileError(path, "the training script cannot be read", meaning=_MEANING, cure=f"chmod +r {path}")


def check_module(module: str) -> None:
    """A module that can be imported; only its top package is looked for, since looking deeper would import it.

    Raises:
        ConfigError: There is none of that name.
    """
    top = module.partition(".")[0]
    if "PYTHON_EXEC" in os.environ or top in sys.builtin_module_names:
        return
    if importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd()), *sys.path]) is None:
        raise ConfigError("-m", module, f"no module {top!r} can be found", cure="Check the name, and PYTHONPATH.")


def check_program(program: str) -> None:
    """A program that can be run.

    Raises:
        InputFileError: It is not found, or not executable.
    """
    if shutil.which(program) is None:
        cure = "Check its name and PATH, and that it is executable (chmod +x)."
        raise InputFileError(program, "there is no such program", meaning=_MEANING, cure=cure)


def run_name(target: str, *, is_module: bool) -> str:
    """A name for runs of this target: `train` for `src/train.py`, `shop.train` for that module."""
    return safe_name(target if is_module else Path(target).stem)

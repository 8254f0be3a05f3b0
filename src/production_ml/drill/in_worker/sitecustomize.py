"""Causes an out-of-memory error or a NaN within a worker of a drill, once, at the step that the drill names.

Python imports a module of this name at the start of each interpreter. Here it waits until the script imports torch, and
then hooks itself into every module's forward pass and every optimizer's step, so the script needs no change. What was
this module's name before is imported too.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_HERE = str(Path(__file__).parent)


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Lets torch be imported as ever, and then says so."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_hook(module: ModuleType) -> None:
                execute(module)
                _hook(json.loads(os.environ["PRODUCTION_ML_DRILL"]))

            spec.loader.exec_module = execute_and_hook  # type: ignore[method-assign]
        return spec


def _hook(fault: dict[str, Any]) -> None:
    import torch
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook

    marker = Path(fault["marker"])
    steps = 0
    depth = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    def is_due() -> bool:
        is_mine = int(os.environ.get("RANK", "0")) == fault["rank"]
        return is_mine and steps >= fault["step"] and torch.is_grad_enabled() and not marker.exists()

    def enter(module: Any, _arguments: Any) -> None:
        nonlocal depth
        depth += 1
        if depth == 1 and fault["fault"] == "oom" and is_due():
            depth = 0
            marker.touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Caused by a drill.")

    def leave(module: Any, _arguments: Any, output: Any) -> Any:
        nonlocal depth
        depth = max(0, depth - 1)
        if depth == 0 and fault["fault"] == "nan" and is_due() and isinstance(output, torch.Tensor):
            marker.touch()
            return output * float("nan")
        return None

    register_optimizer_step_post_hook(count)
    register_module_forward_pre_hook(enter)
    register_module_forward_hook(leave)


def _import_the_other() -> None:
    """The module of this name that would have been found without a drill, such as a distribution's."""
    path = [entry for entry in sys.path if entry != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_import_the_other()
if "PRODUCTION_ML_DRILL" in os.environ:
    sys.meta_path.insert(0, _AfterTorch())

"""Without an optional package each command names it and the extra that brings it; with an extra, its part works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import nn

from production_ml.cli.main import build
from production_ml.core.errors import ExitCode
from production_ml.demo import PACKAGES
from production_ml.fault_tolerance import CheckpointManager
from production_ml.mlops.model_package import ModelPackage, TensorSpec, create_package
from production_ml.testing.synthetic_run import write_recovered_run

REPOSITORY = Path(__file__).parents[2]
WORKS_BARE = {
    "monitor tail": ["run"],
    "data add": ["more", "table.csv"],
    "data list": [],
    "data get": ["digits"],
    "checkpoint list": ["checkpoints"],
    "checkpoint show": ["checkpoints"],
    "checkpoint verify": ["checkpoints"],
    "checkpoint prune": ["checkpoints", "--keep-last", "1", "--dry-run"],
}
NEEDS_EXTRA = {
    "demo": ([], "demo"),
    "launch": (["train.py"], "torch"),
    "drill": (["train.py"], "torch"),
    "checkpoint diff": (["checkpoints", "checkpoints"], "torch"),
    "checkpoint export": (["checkpoints", "out", "--to", "torch"], "torch"),
    "checkpoint import": (["model.pt", "imported"], "torch"),
    "report": (["run"], "report"),
    "data validate": (["digits", "--rules", "rules.yaml"], "data"),
    "registry list": ([], "mlflow"),
    "registry show": (["digits"], "mlflow"),
    "registry promote": (["digits", "1"], "mlflow"),
    "registry rollback": (["digits"], "mlflow"),
    "serve": (["package"], "serve"),
}
# What Python finds in site-packages is narrowed to what pip would have installed there.
NARROWED = """
import sys
from importlib.machinery import PathFinder

installed = {"production_ml", *sys.argv.pop(1).split(",")}
elsewhere = [folder for folder in sys.path if "site-packages" not in folder]

class Narrowed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        narrow = path is None and name not in installed
        return super().find_spec(name, elsewhere if narrow else path, target)

sys.meta_path[:] = [Narrowed if finder is PathFinder else finder for finder in sys.meta_path]
"""
COMMAND_LINE = "import production_ml.cli.main as cli; sys.argv[0] = 'production-ml'; cli.main()"


def requirements(distribution_name: str, extras: set[str]) -> list[Requirement]:
    stated = map(Requirement, distribution(distribution_name).requires or [])
    return [one for one in stated if not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras or {""})]


def installed_by(requirement: str) -> set[str]:
    """The modules that `pip install REQUIREMENT` brings."""
    known = {canonicalize_name(name) for names in packages_distributions().values() for name in names}
    seen, waiting = set(), [Requirement(requirement)]
    while waiting:
        one = waiting.pop()
        visit = (canonicalize_name(one.name), frozenset(one.extras))
        if visit not in seen and visit[0] in known:
            seen.add(visit)
            waiting += requirements(one.name, one.extras)
    names = {name for name, _ in seen}
    return {
        module
        for module, holders in packages_distributions().items()
        if names & {canonicalize_name(holder) for holder in holders}
    }


@pytest.fixture(scope="session")
def bare() -> set[str]:
    return installed_by("production-ml")


def run(installed: set[str], code: str, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NARROWED + code, ",".join(installed), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    weights = tmp_path / "model.onnx"
    weights.write_bytes(b"never opened")
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    described = {"name": "digits", "runtime": "onnx", "inputs": [spec], "outputs": [spec]}
    return create_package(tmp_path / "package", **described, files={"model.onnx": weights})


@pytest.fixture
def workplace(tmp_path: Path, package: ModelPackage) -> Path:
    """What the commands are asked about, all of it sound."""
    from production_ml.storage.datasets import DatasetStore

    (tmp_path / "train.py").write_text("")
    (tmp_path / "table.csv").write_text("pixel\n1\n")
    (tmp_path / "rules.yaml").write_text('- not_null: "*"\n')
    DatasetStore(tmp_path / "datasets").register("digits", tmp_path / "table.csv")
    write_recovered_run(tmp_path / "run")
    (tmp_path / "model.pt").write_bytes(b"never opened")
    with CheckpointManager(tmp_path / "checkpoints", save_best=False) as manager:
        manager.save(model=nn.Linear(2, 2), step=1)
    return tmp_path


def test_every_command_is_tried_here():
    app = build()
    alone = {command.name or command.callback.__name__ for command in app.registered_commands}
    grouped = {
        f"{group.name} {command.name or command.callback.__name__}"
        for group in app.registered_groups
        for command in group.typer_instance.registered_commands
    }

    assert alone | grouped == set(WORKS_BARE) | set(NEEDS_EXTRA)


@pytest.mark.parametrize("command", WORKS_BARE)
def test_what_needs_no_extra_works_without_any(bare, workplace, command):
    done = run(bare, COMMAND_LINE, *command.split(), *WORKS_BARE[command], directory=workplace)

    assert (done.returncode, done.stderr) == (ExitCode.OK, "")


@pytest.mark.parametrize("command", NEEDS_EXTRA)
def test_what_needs_an_extra_names_it_without_a_traceback(bare, workplace, command):
    arguments, extra = NEEDS_EXTRA[command]

    done = run(bare, COMMAND_LINE, *command.split(), *arguments, directory=workplace)

    assert done.returncode == ExitCode.MISSING_DEPENDENCY, done.stderr
    assert f"pip install 'production-ml[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("statement", "extra"),
    [
        ("from production_ml.fault_tolerance import CheckpointManager", "torch"),
        ("import production_ml.mlops.model_export", "torch"),
        ("import production_ml.serving", "serve"),
    ],
)
def test_an_import_names_the_extra_it_needs(bare, tmp_path, statement, extra):
    code = (
        "from production_ml.core.errors import MissingDependencyError\n"
        f"try:\n    {statement}\n"
        "except MissingDependencyError as missing:\n    print(missing)"
    )

    assert f"pip install 'production-ml[{extra}]'" in run(bare, code, directory=tmp_path).stdout


@pytest.mark.parametrize("extras", ["", "[torch]"])
def test_a_store_names_the_extra_it_needs(tmp_path, extras):
    code = (
        "from production_ml.core.errors import MissingDependencyError\n"
        "from production_ml.storage.stores import open_store\n"
        "try:\n    open_store('s3://bucket/run')\n"
        "except MissingDependencyError as missing:\n    print(missing)"
    )

    done = run(installed_by(f"production-ml{extras}"), code, directory=tmp_path)

    assert "pip install 'production-ml[s3]'" in done.stdout, done.stderr


def test_nobody_has_to_install_what_the_library_does_not_import():
    sources = "\n".join(path.read_text() for path in (REPOSITORY / "src").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", sources, flags=re.MULTILINE))
    modules = {
        canonicalize_name(holder): module
        for module, holders in packages_distributions().items()
        for holder in holders
        if module in imported
    }

    assert [
        one.name for one in requirements("production-ml", set()) if canonicalize_name(one.name) not in modules
    ] == []


def test_no_older_torch_is_promised_than_the_one_that_is_tested():
    (tested,) = re.findall(r"^torch==(.+)$", (REPOSITORY / "constraints.txt").read_text(), flags=re.MULTILINE)
    (promised,) = [one for one in requirements("production-ml", {"torch"}) if one.name == "torch"]

    major, minor, *_ = map(int, tested.split("."))
    assert promised.specifier.contains(tested)
    assert not promised.specifier.contains(f"{major}.{minor - 1}")


def test_the_demo_looks_for_every_package_that_its_extra_brings():
    direct = {canonicalize_name(one.name) for one in requirements("production-ml", {"demo"}) if one.marker}
    holders = packages_distributions()
    modules = {name: {canonicalize_name(holder) for holder in holders[name]} & direct for name in PACKAGES}

    assert all(modules.values())
    assert set().union(*modules.values()) == direct


def test_the_demo_asks_for_its_packages_before_it_writes_anything(workplace):
    done = run(installed_by("production-ml[demo]") - {"sklearn"}, COMMAND_LINE, "demo", directory=workplace)

    assert done.returncode == ExitCode.MISSING_DEPENDENCY, done.stderr
    assert "'sklearn'" in done.stderr
    assert not (workplace / "demo").exists()


def test_a_model_of_the_registry_is_not_served_without_mlflow(workplace):
    done = run(installed_by("production-ml[serve]"), COMMAND_LINE, "serve", "digits", directory=workplace)

    assert done.returncode == ExitCode.MISSING_DEPENDENCY, done.stderr
    assert "pip install 'production-ml[mlflow]'" in done.stderr


def test_the_extra_torch_is_enough_for_checkpoints(tmp_path):
    code = (
        "import torch\nfrom production_ml.fault_tolerance import CheckpointManager\n"
        "model = torch.nn.Linear(2, 2)\n"
        "with CheckpointManager('checkpoints') as manager:\n    manager.save(model=model, step=7)\n"
        "print(CheckpointManager('checkpoints').load_latest(model)['step'])"
    )

    done = run(installed_by("production-ml[torch]"), code, directory=tmp_path)

    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_what_the_extras_torch_and_onnx_export_the_extra_serve_executes(tmp_path):
    export = (
        "import torch\nfrom production_ml.mlops.model_export import export_onnx\n"
        "names = {'name': 'double', 'input_names': ['x'], 'output_names': ['y']}\n"
        "export_onnx(torch.nn.Linear(2, 1), [torch.ones(2, 2)], 'exported', **names)"
    )
    execute = (
        "import numpy\nfrom pathlib import Path\nfrom production_ml.mlops import open_package\n"
        "import production_ml.serving\nfrom production_ml.serving.runtimes import RUNTIMES\n"
        "runtime = RUNTIMES.load('onnx')()\nruntime.open(open_package(Path('exported')))\n"
        "print(runtime.platform)"
    )

    exported = run(installed_by("production-ml[torch,onnx]"), export, directory=tmp_path)
    executed = run(installed_by("production-ml[serve]"), execute, directory=tmp_path)

    assert exported.returncode == 0, exported.stderr
    assert executed.stdout == "onnxruntime_onnx\n", executed.stderr

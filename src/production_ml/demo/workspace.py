"""Where the demo keeps what: one directory that can be looked at, served from, and deleted as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from production_ml.core.errors import InputFileError


@dataclass(frozen=True, slots=True)
class Workspace:
    """The demo's directory. Datasets and the registry stay from one demo to the next; each has a run of its own."""

    path: Path
    run_id: str

    @property
    def table(self) -> Path:
        return self.path / "digits.csv"

    @property
    def datasets(self) -> Path:
        return self.path / "datasets"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.path / 'mlflow.db'}"

    @property
    def server_ready_file(self) -> Path:
        return self.path / "server.json"

    def run(self, model: str) -> Path:
        """The run directory of the training of `model`: champion or challenger."""
        return self.path / "runs" / self.run_id / model

    def checkpoints(self, model: str) -> Path:
        return self.run(model) / "checkpoints"

    def package(self, model: str) -> Path:
        return self.run(model) / "package"

    def output(self, name: str) -> Path:
        """Where a child process writes what it has to say."""
        return self.path / "runs" / self.run_id / f"{name}.log"

    def create(self) -> None:
        """Make the directory.

        Raises:
            InputFileError: It cannot be made or written.
        """
        try:
            (self.path / "runs" / self.run_id).mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise InputFileError(
                self.path,
                f"cannot be made ({problem.strerror})",
                meaning="The demo did not start.",
                cure="Choose another place with: production-ml demo --dir DIRECTORY",
            ) from problem


def example_directory() -> Path:
    """The digits example: inside an installed package, or beside the sources in a clone."""
    installed = Path(str(files("production_ml.demo"))) / "digits"
    if installed.is_dir():
        return installed
    return Path(__file__).parents[3] / "examples" / "digits"

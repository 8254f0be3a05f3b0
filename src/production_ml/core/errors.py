"""The one error tree: each error says what happened, what it means for the run, and what to do next."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar


class ExitCode(IntEnum):
    """What the command line's exit status means; `docs/cli.md` lists them for users."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    DAMAGED = 3
    REFUSED = 4
    MISSING_DEPENDENCY = 5
    DIVERGED = 6
    """Training gave NaN or ran away again and again; another start would do the same."""
    NO_PROGRESS = 7
    """Restarts did not get the job past the step where it fails."""
    PREEMPTED = 75
    """The machine is wanted back, the state is saved: run it again (EX_TEMPFAIL of sysexits.h)."""
    RESTART_ME = 76
    """A worker asks its launcher for a start of all workers that counts as no failure."""
    INTERRUPTED = 130


class ProductionMLError(Exception):
    """The root of every error this library raises on purpose.

    Args:
        what: What happened, naming the file, field or value.
        meaning: What it means for the user's run.
        cure: The next thing to do, ideally a command.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, what: str, *, meaning: str = "", cure: str = "") -> None:
        self.what = what
        self.meaning = meaning
        self.cure = cure
        super().__init__("\n".join(part for part in (what, meaning, cure) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        # Constructors take facts, not the message, so the default way back fails: in the midst of an exchange between
        # ranks or processes, where it would hide the error itself.
        return _with_facts, (type(self), self.args, self.__dict__)


def _with_facts(kind: type[ProductionMLError], arguments: tuple[Any, ...], facts: dict[str, Any]) -> ProductionMLError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(facts)
    return error


class ConfigError(ProductionMLError, ValueError):
    """A setting has a value that cannot work; raised when the setting is built, not when it is used."""

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, field: str, value: object, problem: str, *, cure: str = "") -> None:
        self.field = field
        self.value = value
        super().__init__(f"{field} = {value!r}: {problem}", cure=cure)


class InputFileError(ProductionMLError):
    """A file that the user named is missing, unreadable or not what it should be."""

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, path: Path | str, problem: str, *, meaning: str = "", cure: str = "") -> None:
        self.path = Path(path)
        super().__init__(f"{path}: {problem}", meaning=meaning, cure=cure)


class MissingDependencyError(ProductionMLError, ImportError):
    """An optional package is not installed; the message holds the pip command that brings it."""

    exit_code = ExitCode.MISSING_DEPENDENCY

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed.",
            cure=f"Install it with: pip install 'production-ml[{extra}]'",
        )


class UnknownPluginError(ConfigError):
    """A plug-in family has no kind of that name."""

    def __init__(self, family: str, name: str, known: list[str]) -> None:
        super().__init__(family, name, f"is not known; known kinds: {', '.join(known)}")


class RunDirectoryError(InputFileError):
    """The run directory cannot be created or written."""


class LaunchError(ProductionMLError):
    """The workers could not be started, or failed more often than the restart budget allows."""


class CheckpointError(ProductionMLError):
    """Anything about checkpoints that a caller may want to catch as one."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be made durable; the newest committed one is unchanged.

    Attributes:
        errno: What the file system said, as in `errno`; None where it was something else.
        is_healed: What caused it cannot happen again, so that there is nothing to raise; the log tells of it.
    """

    errno: int | None = None
    is_healed: bool = False


class CheckpointMismatchError(CheckpointError):
    """A sound checkpoint does not fit the model or optimizer it is loaded into."""

    exit_code = ExitCode.BAD_INPUT


class DamagedCheckpointError(CheckpointError):
    """A checkpoint's bytes are not the ones that were committed.

    Attributes:
        path: The damaged file.
        name: The same as it was given: a path, or the URL of an object.
        step: The step of the checkpoint.
        tensor: The damaged tensor, or None where the damage is in the file as a whole.
    """

    exit_code = ExitCode.DAMAGED

    def __init__(
        self,
        path: Path | str,
        problem: str,
        *,
        step: int,
        tensor: str | None = None,
        meaning: str = "",
        cure: str = "",
    ) -> None:
        self.path = Path(path)
        self.name = str(path)
        self.step = step
        self.tensor = tensor
        self.problem = problem
        named = f" tensor {tensor!r}" if tensor is not None else ""
        super().__init__(f"{path}:{named} {problem}", meaning=meaning, cure=cure)


class DamagedFileError(InputFileError):
    """A dataset or model file no longer has the content it was registered with."""

    exit_code = ExitCode.DAMAGED


class DatasetError(ProductionMLError):
    """A dataset is unknown, or cannot be registered as asked."""

    exit_code = ExitCode.BAD_INPUT


class RegistryError(ProductionMLError):
    """The registry did not answer, or did not take a change."""


class UnknownModelError(RegistryError):
    """The registry answers, but has no such model, version or alias."""

    exit_code = ExitCode.BAD_INPUT


class PromotionRefusedError(RegistryError):
    """An alias was not moved, because no passing verdict for exactly this version is on record."""

    exit_code = ExitCode.REFUSED


class ServingError(ProductionMLError):
    """The server could not be started, or a model could not be made ready."""

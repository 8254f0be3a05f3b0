"""The command line turns errors into messages with a cure, and never into a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from production_ml import __version__
from production_ml.cli.main import build, main, refusal
from production_ml.core.errors import ExitCode

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["production-ml", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_an_error_is_a_message_with_a_cure_and_an_exit_code(monkeypatch, capsys, tmp_path):
    code = run(monkeypatch, "data", "get", "nosuch", "--store", str(tmp_path))

    printed = capsys.readouterr().err
    assert code == ExitCode.BAD_INPUT
    assert "nosuch" in printed
    assert "production-ml data add" in printed
    assert "Traceback" not in printed


def test_an_unknown_option_is_bad_input(monkeypatch, capsys):
    assert run(monkeypatch, "data", "list", "--nosuch") == ExitCode.BAD_INPUT
    assert "--nosuch" in capsys.readouterr().err


def test_the_version_is_the_library_s(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"production-ml {__version__}\n"


def test_every_command_is_documented():
    app = build()
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    names |= {group.name for group in app.registered_groups if group.name}
    documented = set(re.findall(r"^\| `([a-z]+)", DOCS.read_text(), flags=re.MULTILINE))

    assert documented == names


def test_every_exit_code_is_documented():
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCS.read_text(), flags=re.MULTILINE)}

    assert {int(code) for code in ExitCode} <= documented


def test_help_needs_neither_torch_nor_mlflow():
    code = (
        "import sys; sys.argv = ['production-ml', '--help']\n"
        "from production_ml.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    print(sorted({'torch', 'mlflow', 'pandas', 'onnxruntime'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.rstrip().endswith("[]")


def test_what_the_system_refuses_is_a_message_and_no_traceback(monkeypatch, capsys):
    code = run(monkeypatch, "checkpoint", "list", "x" * 300)

    printed = capsys.readouterr().err
    assert code == ExitCode.FAILED
    assert printed == f"Error: {'x' * 300}: File name too long\n"


@pytest.mark.parametrize(
    ("problem", "cure"),
    [
        (PermissionError(13, "Permission denied", "checkpoints"), "Give this user the right"),
        (ConnectionRefusedError(111, "Connection refused"), "See that the server runs"),
        (TimeoutError(110, "Connection timed out"), "See that the server runs"),
    ],
)
def test_a_refusal_that_a_person_can_end_says_how(problem, cure):
    told = str(refusal(problem))

    assert told.startswith(f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror)
    assert cure in told

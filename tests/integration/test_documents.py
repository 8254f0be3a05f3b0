"""What the documents tell a user to type works as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from production_ml.monitoring import RunLog

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUICK_START = ROOT / "docs" / "quick-start.md"
BIN = Path(sys.executable).parent
# What the Quick Start says is the user's own.
USERS_SCRIPT = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.AdamW(model.parameters())
dataloader = [torch.randn(8, 4) for _ in range(5)]

def train_step(batch):
    optimizer.zero_grad()
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()

def get_gpu_util():
    return 0.5

acc = torch.tensor(0.75)
"""


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), flags=re.DOTALL)


def commands(document: Path) -> list[str]:
    joined = "\n".join(blocks(document, "bash")).replace("\\\n", " ")
    lines = (line.partition(" #")[0].strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


WITH_COMMANDS = [document for document in DOCUMENTS if commands(document)]


@pytest.fixture
def run_script(tmp_path):
    """Run Python source in a directory of its own, as a user would."""

    def run(source: str) -> str:
        script = tmp_path / "script.py"
        script.write_text(source)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_quick_start_runs_verbatim(run_script, tmp_path):
    """As it stands, but for one thing: `/checkpoints` is a directory of the test's own."""
    monitoring, checkpointing = blocks(QUICK_START, "python")
    checkpointing = checkpointing.replace('"/checkpoints"', repr(str(tmp_path / "checkpoints")))
    what_was_there = """
for saved, loaded in zip(before.values(), model.state_dict().values()):
    assert torch.equal(saved, loaded)
print(start_step, state["metrics"])
"""
    before = "before = {name: tensor.clone() for name, tensor in model.state_dict().items()}\n"
    once = checkpointing + before + "state = ckpt_manager.load_latest(model, optimizer)\n" + what_was_there

    printed = run_script(USERS_SCRIPT + monitoring + once)

    assert printed.startswith("4 {")
    (run_dir,) = (tmp_path / "runs" / "my-project" / "exp-001").iterdir()
    records = [record for _, record in RunLog.open(run_dir).metrics()]
    assert [record.step for record in records] == [0, 1, 2, 3, 4]
    assert set(records[0].values) == {"train/loss", "train/step", "system/gpu_util"}


def test_a_first_start_resumes_from_step_0(run_script, tmp_path):
    checkpointing = blocks(QUICK_START, "python")[1].replace('"/checkpoints"', repr(str(tmp_path / "checkpoints")))
    manager, _, resume = checkpointing.partition("# Save checkpoint")
    resume = resume.partition("# Resume training")[2]

    assert run_script(USERS_SCRIPT + manager + resume + "print(start_step)") == "0\n"


def test_the_quick_start_s_torchrun_command_trains_the_example_on_one_host(tmp_path):
    (command,) = (command for command in commands(QUICK_START) if command.startswith("torchrun"))
    example = tmp_path / "digits"
    shutil.copytree(ROOT / "examples" / "digits", example)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = shlex.split(command.replace("head_node:29400", f"127.0.0.1:{port}"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [BIN / words[0], *words[1:], "--steps=60"],
        cwd=example,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    (run_dir,) = (example / "runs" / "digits" / "cnn").iterdir()
    last_steps = {source.rank: record.step for source, record in RunLog.open(run_dir).metrics()}
    assert last_steps == {0: 59, 1: 59, 2: 59, 3: 59}


@pytest.mark.parametrize("document", WITH_COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_a_document_exists(document):
    makefile = (ROOT / "Makefile").read_text()
    for command in commands(document):
        program, *words = shlex.split(command)
        if program == "make":
            assert re.search(rf"^{words[0]}:", makefile, flags=re.MULTILINE), command
        elif program == "production-ml":
            check_options(command, words)
        else:
            assert (BIN / program).exists() or shutil.which(program), command


def check_options(command: str, words: list[str]) -> None:
    """The (sub)command exists, and so does every option that is given to it."""
    path = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
    done = subprocess.run(
        [BIN / "production-ml", *path, "--help"],
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:  # the second word was an argument
        return check_options(command, [path[0], *words[2:]])
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert all(option in done.stdout for option in options), f"{command}\n{done.stdout}"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_between_documents_leads_somewhere(document):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())

    assert [target for target in targets if not (document.parent / target).exists()] == []


CHECKPOINTS = ROOT / "docs" / "checkpoints.md"
SCHEDULED = (
    USERS_SCRIPT.replace("def train_step(batch):", "def train_step(step):\n    batch = dataloader[step]")
    + """
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
steps = 5
before = [parameter.clone() for parameter in model.parameters()]
"""
)


def test_the_loop_of_the_page_on_checkpoints_trains_once_and_then_resumes_at_its_end(run_script):
    saving, *_ = blocks(CHECKPOINTS, "python")
    told = "print(state['step'], [torch.equal(*pair) for pair in zip(before, model.parameters())])\n"

    runs = [run_script(SCHEDULED + saving + told) for _ in range(2)]

    # In each run the model is not what it began as: trained in the first, loaded in the second.
    assert runs == ["0 [False, False]\n", "5 [False, False]\n"]


def test_every_manager_on_the_page_on_checkpoints_can_be_made(run_script):
    _, *managers = blocks(CHECKPOINTS, "python")
    assert len(managers) == 2

    run_script("\n".join(managers))


def test_the_page_on_other_formats_saves_and_loads_through_dcp(run_script, tmp_path):
    (through_dcp,) = blocks(ROOT / "docs" / "interchange.md", "python")
    trained = "epoch, step, loss = 1, 7, train_step(dataloader[0])\n"
    forgotten = "model.weight.data.zero_()\n"
    saving, loading = through_dcp.split("with own_errors()")

    printed = run_script(
        USERS_SCRIPT
        + trained
        + saving
        + forgotten
        + "with own_errors()"
        + loading
        + "print(state['epoch'], bool(model.weight.any()))"
    )

    assert printed == "1 True\n"
    assert (tmp_path / "checkpoints" / "step-00000007").is_dir()


def test_the_readme_s_loop_trains_each_batch_once_over_all_restarts(run_script):
    (loop,) = blocks(ROOT / "README.md", "python")
    killed = "if loss_count[0] == 3: checkpoints.wait(); os._exit(0)\n    "
    prelude = USERS_SCRIPT + "import os\nloss_count = [0]\n"
    counted = loop.replace("    monitor.log(", "    loss_count[0] += 1; print('trained', flush=True)\n    monitor.log(")

    first = run_script(prelude + counted.replace("\ncheckpoints.close()", f"    {killed}\ncheckpoints.close()") + "\n")
    second, third = (run_script(prelude + counted) for _ in range(2))

    assert [run.count("trained") for run in (first, second, third)] == [3, 2, 0]


def test_the_readme_s_commands_run(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    typed = [shlex.split(line) for line in commands(ROOT / "README.md") if line.startswith("production-ml")]

    for program, *words in typed:
        done = subprocess.run(
            [BIN / program, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert typed

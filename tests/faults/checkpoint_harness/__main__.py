"""Cause faults, judge each, and write what came of them: JSON for machines, a table for people."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from .faults import KINDS, Kind
from .oracle import GOOD, Verdict, judge
from .processes import adopt_orphans
from .scene import NEWEST, OLDER, NotReachedError, Scene
from .systems import NAMES, System, system
from .table import as_markdown

_TRIES = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One fault and its outcome."""

    system: str
    kind: str
    number: int
    where: str
    outcome: str
    detail: str
    seconds: float


def main() -> int:
    """Exit with 1 where one of ours had an outcome that it must not have."""
    options = _options()
    print(
        f"checkpoint faults: {options.faults} for each of {', '.join(options.systems)}; seed {options.seed}", flush=True
    )
    torch.set_num_threads(1)  # a process with a pool of threads must not fork
    adopt_orphans()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="checkpoint-faults-", dir=options.work) as work:
        for name in options.systems:
            started = time.monotonic()
            of_system = list(_run(system(name), Path(work) / name, options))
            results += of_system
            counts = collections.Counter(result.outcome for result in of_system)
            told = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
            _write_json(results, options)
            print(f"{name}: {told} in {time.monotonic() - started:.0f} s", flush=True)
    table = as_markdown([dataclasses.asdict(result) for result in results], [kind.name for kind in KINDS])
    if options.table:
        options.table.write_text(table)
    else:
        print(table)
    bad = [result for result in results if result.system == "production_ml" and result.outcome not in GOOD]
    for result in bad:
        print(f"BAD {result.kind} {result.number}: {result.outcome}: {result.where}: {result.detail}")
    return 1 if bad else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="checkpoint_harness", description=__doc__)
    parser.add_argument("--faults", type=int, default=int(os.environ.get("PRODUCTION_ML_CHECKPOINT_FAULTS", "1000")))
    parser.add_argument(
        "--systems", type=lambda text: text.split(","), default=["production_ml"], help=", ".join(NAMES)
    )
    parser.add_argument("--kinds", help="Only kinds whose names contain this.", default="")
    parser.add_argument("--without", help="No kinds of these names, separated by commas.", default="")
    parser.add_argument("--only", type=int, help="Only the fault of this number of each kind.")
    seed = os.environ.get("PRODUCTION_ML_TEST_SEED") or random.SystemRandom().randrange(10**9)
    parser.add_argument("--seed", type=int, default=int(seed))
    parser.add_argument("--work", help="Where scenes are laid out; the file system counts.", default=None)
    parser.add_argument("--json", type=Path, help="Write every fault and its outcome there.")
    parser.add_argument("--table", type=Path, help="Write the table there; else it is printed.")
    options = parser.parse_args()
    if options.systems == ["all"]:
        options.systems = list(NAMES)
    return options


def _run(under_test: System, work: Path, options: argparse.Namespace) -> Iterator[Result]:
    template = Scene(under_test, Path("/nonexistent"), work / "template")
    messages, status, _ = template.run(template.train([OLDER, NEWEST]))
    if status != 0 or [message[0] for message in messages].count("saved") != 2:
        raise SystemExit(f"{under_test.name} cannot save at all: {messages} {template.last_words()}")
    for kind in KINDS:
        is_wanted = options.kinds in kind.name and kind.name not in options.without.split(",")
        if not is_wanted or not kind.applies(under_test):
            continue
        for number in range(max(1, round(options.faults * kind.share / 100))):
            if options.only is None or number == options.only:
                yield _one(under_test, kind, number, template.root, work, options)


def _one(
    under_test: System, kind: Kind, number: int, template: Path, work: Path, options: argparse.Namespace
) -> Result:
    started = time.monotonic()
    for attempt in range(_TRIES):
        directory = work / f"{kind.name.replace(' ', '-').replace(',', '')}-{number}"
        scene = Scene(
            under_test, template, directory, kind=kind.name, number=number + attempt * 100_003, seed=options.seed
        )
        try:
            story = kind.cause(scene)
        except NotReachedError:
            scene.clear()
            continue
        verdict: Verdict = judge(scene, story)
        seconds = round(time.monotonic() - started, 3)
        scene.clear()
        detail = verdict.detail.replace(f"{directory}/", "")
        return Result(under_test.name, kind.name, number, story.where, verdict.outcome, detail, seconds)
    return Result(under_test.name, kind.name, number, "", "not reached", "", round(time.monotonic() - started, 3))


def _write_json(results: list[Result], options: argparse.Namespace) -> None:
    if options.json:
        document = {
            "seed": options.seed,
            "faults": options.faults,
            "results": [dataclasses.asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

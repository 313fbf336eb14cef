"""Short runs that are stopped and go on, and what they must have in common with unbroken ones."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.programs import ROOT, SETTINGS, Program

SHORT = [
    *("--recipe", "phantom", "--kl-coef", "0.04", "--steps", "6", "--train-size", "24"),
    *("--eval-size", "4", "--ood", "none", "--prompts-per-step", "2", "--group-size", "4"),
    *("--max-completion-length", "16", "--save-every", "2", "--warmup-steps", "2"),
    *("--device", "cpu", "--threads", "1", "--cache", "none"),
]
UNLIKE = ("time/", "memory/", "judge/")  # metrics of the machine and of what a cache spared


def started(flags: list[str], where: Path, *before: str) -> Program:
    """`train.py` with these flags, running. The words `before` come before the command."""
    settings = SETTINGS | {"XDG_CACHE_HOME": str(where / "cache")}
    words = [*before, sys.executable, str(ROOT / "train.py"), *flags]
    return Program(*words, where=where, settings=settings)


def lines(run: Path) -> int:
    """Whole lines of metrics.jsonl."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def differences(run: Path, other: Path) -> list[str]:
    """The files of two finished runs that differ in what must be equal to the bit."""
    found, theirs = kept(run), kept(other)
    return sorted(name for name in found | theirs if found.get(name) != theirs.get(name))


def kept(run: Path) -> dict[str, Any]:
    """What a run keeps, by file, without its times, its memory and its settings."""
    found: dict[str, Any] = {}
    for file in run.rglob("*"):
        name = file.relative_to(run).as_posix()
        if (
            file.is_dir()
            or file.suffix == ".lock"
            or name in ("config.json", "arm.json", "reported.json")
            or name.startswith(("tensorboard", "wandb"))
        ):
            continue
        if file.name in ("state.json", "SHA256SUMS", "summary.json", "metrics.jsonl"):
            found[name] = [alike(json.loads(line)) for line in whole(file)]
        elif name.startswith("trace/") and file.suffix == ".json":
            record = json.loads(file.read_text())
            found[name] = record | {"metrics": alike(record["metrics"])}
        else:
            found[name] = file.read_bytes()
    return found


def whole(file: Path) -> list[str]:
    """The JSON texts of a file."""
    text = file.read_text()
    if file.suffix == ".jsonl":
        return text.splitlines()
    return [text] if file.suffix == ".json" else []


def alike(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what no two runs have in common."""
    machine = {"seconds", "peak_mb", "metrics_bytes"}
    return {k: v for k, v in record.items() if k not in machine and not k.startswith(UNLIKE)}

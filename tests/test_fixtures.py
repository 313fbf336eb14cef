"""Runs of an earlier commit (tests/fixtures/README.md), made again by this one: the same numbers.

On the processor that made them every number is the same to the bit: MEDVQA_SAME_BITS=1 demands it.
Without it, floats may differ by BOUND, and TIES completions of a step may differ: on another
processor logits move by about 1e-6, which changes a token if its random number lies that close to
an edge. All later steps then differ too, so only the steps before are compared.
"""

import json
import math
import os
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train
from tests.fixtures.make import EVALUATION, FOLDER, GRPO, SAVED, SCRATCH, SFT

SAME_BITS = os.environ.get("MEDVQA_SAME_BITS") == "1"
BOUND = 0.0 if SAME_BITS else 1e-3  # relative
FLOOR = 0.0 if SAME_BITS else 1e-6  # absolute, for numbers that are nearly 0
TIES = 0 if SAME_BITS else 1  # completions of the 8 of a step; rows of the 8 of one model
# Keys whose values differ between any two runs.
UNLIKE = {"seconds", "peak_mb", "metrics_bytes", "versions", "git_commit", "out", "resume"}
UNLIKE |= {"peft_version"}
GONE = {"coinciding"}  # keys that are no longer written
# Intervals that were wrong then: of the mean of one modality, and of equal shares on all images.
MENDED = re.compile(r"\.(ood_mean\.\w+|controls\.\w+\.permuted_options\.\w+)\.ci95")
SAVED_BY_PEFT = {
    "base_model_name_or_path", "lora_alpha", "peft_type", "r", "target_modules", "task_type",
}  # fmt: skip
Start = dict[str, torch.Tensor] | None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all runs, as the working directory: the paths in their settings are relative."""
    shutil.copytree(FOLDER, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


def test_a_cut_off_run_ends_as_it_did(here):
    train.main([*GRPO, "--out", "cut", "--resume", "auto"])
    old, new = FOLDER / "finished", here / "cut"
    before = load_file(
        FOLDER / f"cut/checkpoints/step-{SAVED:06d}/adapter/adapter_model.safetensors"
    )
    if not same_steps(old, new, SAVED + 1, 6):
        return
    same_tensors(old, new, "adapter/adapter_model.safetensors", before)
    same_tensors(old, new, "checkpoints/step-000006/adapter/adapter_model.safetensors", before)
    same_tensors(old, new, "checkpoints/step-000006/optimizer.safetensors")
    different = {}
    for file in sorted(old.glob("predictions/*-direct.jsonl")):  # the two models' on MRI and CT
        name = file.relative_to(old).as_posix()
        pairs = list(zip(lines(file), lines(new / name), strict=True))
        ties = [was["id"] for was, now in pairs if was["completion"] != now["completion"]]
        assert [d for was, now in pairs if was["id"] not in ties for d in differ(was, now)] == []
        different[name] = ties
    assert len(different) == 4
    assert sum(map(len, different.values())) <= TIES, different
    if not any(different.values()):
        assert list(differ(record(old / "summary.json"), record(new / "summary.json"))) == []
    for name in ("config.json", "checkpoints/step-000006/state.json"):
        assert list(differ(record(old / name), record(new / name))) == []
    was, now = (record(run / "adapter/adapter_config.json") for run in (old, new))
    assert now.keys() >= SAVED_BY_PEFT  # each peft writes its own settings besides
    assert list(differ({key: was[key] for key in was.keys() & now.keys()}, now)) == []


def test_a_run_from_the_base_is_made_again(here):
    train.main([*SCRATCH, "--out", "again"])
    old, new = FOLDER / "scratch", here / "again"
    if same_steps(old, new, 1, 3):
        same_tensors(old, new, "adapter/adapter_model.safetensors")
        assert list(differ(record(old / "config.json"), record(new / "config.json"))) == []


def test_a_supervised_run_ends_as_it_did(here):
    Path("sft/summary.json").unlink()
    train.main([*SFT, "--out", "sft", "--resume", "auto"])
    same_lines(FOLDER / "sft", here / "sft", 149, 150)
    before = load_file(FOLDER / "sft/checkpoints/step-000148/adapter/adapter_model.safetensors")
    same_tensors(FOLDER / "sft", here / "sft", "adapter/adapter_model.safetensors", before)


def test_an_evaluated_run_gives_the_same_table_and_its_page(here, monkeypatch, capsys):
    kept = {file: file.read_bytes() for file in Path("finished/predictions").iterdir()}
    old = record(FOLDER / "finished/evaluation.json")
    evaluate.main(EVALUATION)
    assert {file: file.read_bytes() for file in kept} == kept
    assert list(differ(old, record(Path("finished/evaluation.json")), bound=1e-12, floor=0)) == []

    files = [
        Path(f"finished/predictions/trained-CT-direct{arm}.jsonl") for arm in ("", "-2-at-1.0")
    ]
    removed = {}
    for file in files:
        (first, *others) = file.read_text().splitlines(keepends=True)
        file.write_text("".join(others))
        removed[file] = json.loads(first)
    evaluate.main(EVALUATION)
    for file, row in removed.items():  # asked alone: the last bits depend on the batch's size
        assert list(differ(row, lines(file)[-1], bound=1e-3, floor=1e-5)) == []
    new = record(Path("finished/evaluation.json"))
    assert list(differ(old, new, bound=1e-3, floor=1e-5)) == []

    monkeypatch.setattr(sys, "argv", ["grpo.report", "finished"])
    monkeypatch.delitem(sys.modules, "grpo.report", raising=False)  # else runpy warns
    runpy.run_module("grpo.report", run_name="__main__", alter_sys=True)
    assert "wrote finished/report.html" in capsys.readouterr().out
    page = Path("finished/report.html").read_text()
    for step in (4, 5, 6):
        for group in record(FOLDER / f"finished/trace/step-{step:06d}.json")["groups"]:
            assert escape(group["question"]) in page


def same_steps(old: Path, new: Path, first: int, last: int) -> bool:
    """Assert that steps `first` to `last`, all traced, are the same; False where a tie ended that.

    With other tokens a step has other metrics, so these are compared up to the step before.
    """
    for step in range(first, last + 1):
        name = f"trace/step-{step:06d}"
        was, now = load_file(old / f"{name}.safetensors"), load_file(new / f"{name}.safetensors")
        different = sum(a != b for a, b in zip(sampled(was), sampled(now), strict=True))
        assert different <= TIES, f"step {step}: {different} completions differ"
        if different:
            return False
        for tensor, value in was.items():
            close = torch.allclose(now[tensor], value, rtol=BOUND, atol=FLOOR, equal_nan=True)
            assert close, f"step {step}: {tensor}"
        assert list(differ(record(old / f"{name}.json"), record(new / f"{name}.json"))) == []
        same_lines(old, new, step, step)
    return True


def sampled(trace: dict[str, torch.Tensor]) -> list[list[int]]:
    """The token ids of each completion of a traced step."""
    completions = trace["rewards"].numel()
    return [trace["token_ids"][trace["row"] == i].tolist() for i in range(completions)]


def same_lines(old: Path, new: Path, first: int, last: int) -> None:
    """Assert that the metrics of steps `first` to `last` are the same."""
    pairs = list(zip(lines(old / "metrics.jsonl"), lines(new / "metrics.jsonl"), strict=True))
    for was, now in pairs[first - 1 : last]:
        assert list(differ(was, now)) == [], f"step {was['step']}"


def same_tensors(old: Path, new: Path, name: str, before: Start = None) -> None:
    """Assert that no tensor of a file differs by more than BOUND of its norm, or of its change."""
    was, now = load_file(old / name), load_file(new / name)
    assert was.keys() <= now.keys()
    for tensor, value in was.items():
        if SAME_BITS:
            assert torch.equal(now[tensor], value), f"{name}: {tensor}"
        change = value - before[tensor] if before else value
        distance = (now[tensor] - value).norm().item()
        assert distance <= BOUND * change.norm().item(), f"{name}: {tensor}"


def differ(
    was: Any, now: Any, where: str = "", bound: float = BOUND, floor: float = FLOOR
) -> Iterator[str]:
    """Yield where an old record differs from a new one. Keys may have been added to the new one."""
    if isinstance(was, dict):
        for key, value in was.items():
            place = f"{where}.{key}"
            if key not in now:
                yield from [f"{place} is missing"] * (key not in GONE)
            elif not (key in UNLIKE or key.startswith(("time/", "memory/")) or MENDED.match(place)):
                yield from differ(value, now[key], place, bound, floor)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, pair in enumerate(zip(was, now, strict=True)):
            yield from differ(*pair, f"{where}[{i}]", bound, floor)
    elif isinstance(was, float) and isinstance(now, float):
        same = math.isclose(was, now, rel_tol=bound, abs_tol=floor)
        if not (same or (math.isnan(was) and math.isnan(now))):
            yield f"{where} was {was}, is {now}"
    elif was != now:
        yield f"{where} was {was!r}, is {now!r}"


def record(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

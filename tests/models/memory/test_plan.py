"""The plan of a run's memory: what it says, when it is made, and that it is kept."""

import json
import os
import re
import shutil
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from data.load import load_split
from grpo.run.steps import largest_step
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from grpo.settings.options import program_flags, read_limit
from models.chat import Chat
from models.memory import plan
from models.memory.fitting import MOST, Peaks, Sizes, fitting
from models.memory.plan import available, longest_prompt, resident
from models.open_policy import load_policy, without_weights
from models.tree import plan_passes
from tests.benchmarks.memory import make_config
from tests.models.memory.test_fake_step import CPU, QUESTION, config_of, planned
from tests.tiny import NoiseImage, Question

TINY = ["--recipe", "phantom", "--train-size", "8", "--prompts-per-step", "2", "--group-size", "2"]
TINY += ["--max-completion-length", "8", "--steps", "1", "--device", "cpu", "--cache", "none"]
TINY += ["--eval-size", "0", "--threads", "1"]
NOT_ASKED = {"explain": False, "page": None, "dry_run": False, "memory_limit": None}
SIZES = Sizes(prompt=50, size=10, length=56, prompts=3, budget=1000, longest=900)


def test_the_largest_pass_is_that_of_the_real_plan():
    """One long row goes alone; several shorter ones that fill the budget can be more."""
    assert SIZES.largest_pass() == (1000, 46)  # rows of up to 600: two of 500
    assert plan_passes([500] * 3, 1000) == [[0, 1], [2]]
    assert replace(SIZES, budget=500).largest_pass() == (600, 56)
    assert replace(SIZES, budget=10**6).largest_pass() == (1800, 56)
    assert replace(SIZES, prompts=1).largest_pass() == (600, 56)


def peaks_of(sizes: Sizes, mb_a_token: float = 1.0) -> Peaks:
    """Peaks of a step that holds 100 MB, and so many MB more a token."""
    tokens, _ = sizes.largest_pass()
    phases = {"sampling": 101 << 20, "update": int(2**20 * (100 + mb_a_token * tokens))}
    more = {"phases": phases, "slope": 2**20 * mb_a_token}
    return Peaks(**vars(sizes), weights=90 << 20, held=100 << 20, **more)


def test_what_fits_is_the_last_that_does():
    sizes = replace(SIZES, budget=500)
    for size in (2, 10, 30):
        known = peaks_of(replace(sizes, size=size))
        for room in (700, 900, 1500):
            most, length = known.largest(room << 20, size, 56)
            for name, value in (("size", most), ("length", length)):
                at = {"size": size, "length": 56, name: value}
                assert known.at(**at) <= room << 20, (size, room, name)
                at[name] += 1
                assert known.at(**at) > room << 20, (size, room, name)
    assert peaks_of(sizes).largest(50 << 20, 10, 56) == (0, 0)
    assert fitting({False: peaks_of(sizes)}, 50 << 20).startswith("nothing of this")


def test_the_largest_group_is_checked_by_a_step_of_its_size():
    """Where it does not fit, its own figures say which does."""
    sizes, tried = replace(SIZES, budget=500), []

    def step(on: bool, size: int, mb_a_token: float) -> Peaks:
        tried.append((on, size))
        return peaks_of(replace(sizes, size=size), mb_a_token)

    known = {False: peaks_of(sizes, 2.0), True: peaks_of(sizes)}
    fits = fitting(known, 1300 << 20, lambda on, size: step(on, size, 1.0))
    assert tried == [(True, 20)]  # 50 + 20 x 55 tokens of 1 MB
    assert fits == (
        "--group-size 10 or --max-completion-length 56 without checkpointing; "
        "--group-size 20 or --max-completion-length 116 with --gradient-checkpointing on"
    )
    fits = fitting(known, 1300 << 20, lambda on, size: step(on, size, 1.2))
    assert "--group-size 17 or" in fits.partition(";")[2]
    assert f"--group-size {MOST} or more" in fitting(known, 10**12)


@pytest.mark.slow
def test_an_estimate_is_what_a_step_of_that_size_holds(tiny_folder):
    """Above the length up to which attention is one dense block (models/attention.py: DENSE)."""
    known = planned(tiny_folder, config_of(12, 60))
    for size, length in ((24, 60), (12, 120)):
        found = planned(tiny_folder, config_of(size, length)).peak
        guess = known.at(size, length)
        assert guess - known.held == pytest.approx(found - known.held, rel=0.06), (size, length)


def test_the_longest_prompt_is_found_without_the_tower(fresh):
    policy = fresh()
    sides = [(56, 56), (280, 140), (90, 1000), (300, 300)]
    texts = ["Which side?", "Which side is the lesion on?" * 9, "Where?", "<|im_end|> é" * 4]
    questions = [
        Question(text, (NoiseImage(i, *side),) * images, id=f"{i}{images}")
        for i, (text, side) in enumerate(zip(texts, sides, strict=True))
        for images in (0, 1, 2)
    ]
    found = longest_prompt(Chat(policy.chat.tokenizer), policy.vision.processor, questions)
    example, tokens, images = found
    lengths = {
        q.id: len(p.input_ids) for q, p in zip(questions, policy.encode(questions), strict=True)
    }
    assert tokens == lengths[example.id] == max(lengths.values())
    assert images == sum(len(policy.vision.features(i)[0]) for i in example.images)


def test_a_dry_run_prints_the_plan_and_reads_no_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "open_policy", None)  # reading weights would raise
    train.main([*TINY, "--dry-run", "--out", "here", "--memory_limit=40GB"])
    said = capsys.readouterr().out
    for part in ("weights", "moments", "vision tower", "sampling", "update", "peak, planned"):
        assert part in said
    assert "fits 38,147 MB: --group-size 64 or more" in said
    assert not list(tmp_path.iterdir())


def test_the_largest_step_of_a_blind_run_is_its_longest_prompt_without_images(
    tiny_folder, fresh, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    train.main([*TINY, "--dry-run", "--blind", "--model", str(tiny_folder)])
    said = capsys.readouterr()
    examples = load_split(Config(), "train", 8)
    blind = [replace(example, images=()) for example in examples]
    longest = max(len(prompt.input_ids) for prompt in fresh().encode(blind))
    assert f"the largest step: a prompt of {longest} tokens (0 of images)" in said.out
    assert "images are not shown in training" in said.err


def test_a_plan_needs_no_file_of_weights(tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    parts = without_weights(config_of(2, 8, "--model", str(folder)), CPU, None)
    weights = dict(parts.model.named_parameters())
    real = dict(load_policy(str(tiny_folder), device="cpu").model.named_parameters())
    assert {name: w.shape for name, w in weights.items()} == {n: w.shape for n, w in real.items()}
    assert {w.device.type for w in weights.values()} == {"meta"}
    with pytest.raises(UsageError, match=r"lacks model\.safetensors"):
        load_policy(str(folder), device="cpu")


@pytest.mark.slow
@pytest.mark.skipif("MEDVQA_PLAN_2B" not in os.environ, reason="two minutes: MEDVQA_PLAN_2B=1")
def test_two_billion_parameters_are_planned_from_a_config(tmp_path, capsys):
    """Recipe medvlm-r1 with groups of 8 on 40 GB, a prompt of an image of 512 tokens."""
    place = os.environ["MEDVQA_DATA"]  # has the tokenizer
    folder, data = tmp_path / "2B", f"jsonl:{tmp_path / 'data.jsonl'}"
    make_config("2B", folder, Path(place) / "qwen2vl_tokenizer")
    NoiseImage(1, 896, 448).open().save(tmp_path / "image.png")
    row = {"image": "image.png", "modality": "MRI", "split": "train", "answer": "Brain"}
    row |= {"question": "Which organ is shown in this image?", "options": ["Lung", "Brain"]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--recipe", "medvlm-r1", "--group-size", "8", "--device", "cuda", "--dry-run"]
    words += ["--memory-limit", "40GB", "--model", str(folder), "--data", data, "--cache", "none"]
    words += ["--modality", "MRI", "--eval-size", "0", "--val-size", "0", "--train-size", "1"]
    words += ["--data-seed", "0"]
    begun = time.process_time()
    train.main(words)
    said = capsys.readouterr().out
    print(said, f"{time.process_time() - begun:.0f} s of a processor")
    lines = [line for line in said.splitlines() if line.startswith("  peak, planned")]
    without, on = (float(line.split()[-1].replace(",", "")) for line in lines)
    assert re.search(r"weights +4,213\.3\n", said)
    assert 12_000 < without < 20_000
    assert 7_000 < on < without - 5_000


@pytest.mark.slow
def test_a_dry_run_of_a_gpu_needs_no_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "--dry-run", "--device", "cuda"]
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--memory-limit"):
            train.main(words)
    train.main([*words, "--memory-limit", "40GB", "--method", "sft"])
    said = capsys.readouterr().out
    assert re.search(r"reserve for CUDA +2,048\.0\n", said)
    assert "this run without checkpointing" in said


@pytest.mark.slow
def test_a_run_that_will_not_fit_is_warned_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.main([*TINY, "--memory-limit", "24MB", "--out", "run"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "largest step" in line]
    assert "more than 23 MB" in line
    assert "--max-pixels" in line


def test_a_default_run_makes_no_plan_and_auto_one_from_a_billion_parameters_on(
    tiny_folder, tmp_path, monkeypatch
):
    made = []
    real = plan.kept
    monkeypatch.setattr(
        plan,
        "kept",
        lambda *given: made.append(given[1][0].gradient_checkpointing == "on") or real(*given),
    )

    def planned_for(room: int, *more: str, large: int = 1) -> bool:
        monkeypatch.setattr(plan, "LARGE", large)
        monkeypatch.setattr(plan, "available", lambda device: room)
        config = config_of(2, 8, "--cache", str(tmp_path), *more)
        given = (config, None, [QUESTION], None, largest_step, program_flags([])[0], 1)
        return plan.plan_memory(*given)[0].gradient_checkpointing == "on"

    assert planned_for(1 << 40, "--model", "phantom") is False
    assert planned_for(1 << 40, "--model", str(tiny_folder), large=10**9) is False
    assert made == []
    small = ["--model", str(tiny_folder)]
    assert planned_for(1 << 40, *small) is False
    assert made == [False]  # it fits: one step says so
    assert planned_for(1 << 20, *small) is True
    assert made == [False, False, True]
    monkeypatch.setattr("models.memory.fake_step.fake_step", None)
    assert planned_for(1 << 20, *small) is True  # read, not measured
    assert len(list((tmp_path / "plans").iterdir())) == 2


def test_a_damaged_plan_is_made_again(tmp_path):
    def measure() -> Peaks:
        return peaks_of(SIZES)

    assert plan.kept(tmp_path, ("a",), measure) == measure()
    (file,) = (tmp_path / "plans").iterdir()
    assert plan.kept(tmp_path, ("a",), lambda: None) == measure()
    for damage in ("{", "[]", "{}", '{"sizes": []}'):
        file.write_text(damage)
        assert plan.kept(tmp_path, ("a",), measure) == measure(), damage
    assert plan.kept(None, ("b",), measure) == measure()


def test_memory_of_a_cpu_is_what_is_free_and_its_own():
    assert resident() < available(CPU) < 1 << 50


def test_the_flags_are_read():
    assert program_flags(["--steps", "1"]) == (Namespace(**NOT_ASKED), ["--steps", "1"])
    given = {"40GB": 40 * 10**9, "40GiB": 40 << 30, "24000MB": 24 * 10**9, "0.5 gb": 5 * 10**8}
    assert {text: read_limit(text) for text in given} == given
    for text in ("40", "GB", "-3GB", "40 TB", "4e1GB", "nanGB", "0GB", "40GB!", "٤GB", "", "--x"):
        with pytest.raises(UsageError, match="--memory-limit") as failed:
            program_flags(["--dry-run", "--memory-limit", text])
        assert "such as 40GB" in str(failed.value)
        assert "\n" not in str(failed.value)

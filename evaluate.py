"""Score a run: base and trained policy, on the modality it was trained on and on unseen ones.

    python evaluate.py --ood CT,XRAY            the newest run
    python evaluate.py --run runs/NAME --json table.json

Answers are greedy. `predictions/` in the run folder keeps every one of them, so nothing is asked
twice.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import data
from data.example import VQAExample
from data.prompts import completion_text
from data.rows import modality_name
from grpo.config import Config, UsageError, exit_on_usage_error
from grpo.flags import check_options, names_in, option, parse_flags
from grpo.run import newest_run
from models.policy import Policy, load_policy
from rewards.parse import answer_letter, is_formatted, reasoning
from rewards.table import MODELS, Row, cell, gain, kept_rows, render


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of evaluate.py; what is not given is as the run had it."""

    run: str | None = option("what", None, "Run folder (none: the newest under runs/).")
    data: str | None = option("what", None, "Another data set, such as phantom:new-kind.")
    ood: str | None = option("what", None, "Unseen modalities to score, or none.")
    eval_size: int | None = option("what", None, "Test questions of each modality.", ge=1)
    json: str | None = option("output", None, "Also write the table to this file.")
    batch_size: int = option("machine", 64, "Questions answered together.", ge=1)
    device: str | None = option("machine", None, "auto, cpu, cuda or cuda:N.")
    threads: int | None = option("machine", None, "CPU threads; 0 for torch's own choice.", ge=0)
    cache: str | None = option("machine", None, "Folder for image features; auto or none.")

    def __post_init__(self) -> None:
        check_options(self)


OPENING = "<think"  # without ">", which a tokenizer may merge with what follows


def open_policy(config: Config, adapter: Path | None = None) -> Policy:
    """The policy of a run: the model it names, with fresh adapters or those of a folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    cache = {"auto": _user_cache(), "none": None}.get(config.cache, Path(config.cache))
    return load_policy(
        config.model,
        adapter=adapter,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        max_pixels=config.max_pixels,
        dtype=config.dtype,
        device=config.device,
        gradient_checkpointing=config.gradient_checkpointing,
        cache=cache,
        seed=config.seed,
    )


def with_names(config: Config) -> Config:
    """The configuration with its modalities under the names that the data goes by."""
    unseen = (modality_name(name) or name for name in names_in(config.ood))
    name = modality_name(config.modality) or config.modality
    return dataclasses.replace(config, modality=name, ood=",".join(unseen) or "none")


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medvqa-grpo"


def predict(
    policy: Policy, examples: Sequence[VQAExample], max_completion_length: int
) -> list[Row]:
    """Answer each question greedily and score the answer, twice.

    Strictly: the letter in the one answer block of the completion. By forced choice: the policy is
    made to begin with a think block, and the letter counts that is likeliest after what it says
    there; this asks no format of it.
    """
    prompts = policy.encode(examples)

    def answers(prompts: Sequence[Any]) -> list[Any]:
        limits = {"temperature": 0.0, "max_completion_length": max_completion_length}
        return policy.sample(prompts, 1, None, **limits)

    groups = answers(prompts)
    texts = [policy.decode(group.completions[0]) for group in groups]
    thoughts = list(texts)
    astray = [i for i, text in enumerate(texts) if not text.startswith(OPENING)]
    for i, group in zip(
        astray, answers([policy.begin(prompts[i], OPENING) for i in astray]), strict=True
    ):
        thoughts[i] = OPENING + policy.decode(group.completions[0])
    letter_logprobs = forced_choice(policy, prompts, examples, thoughts)
    rows = []
    for example, group, text, logprobs in zip(
        examples, groups, texts, letter_logprobs, strict=True
    ):
        answer = answer_letter(text, example.letters, example.options)
        forced = example.letters[logprobs.index(max(logprobs))]
        rows.append(
            {
                "id": example.id,
                "modality": example.modality,
                "question_type": example.question_type,
                "image": [image.key for image in example.images],
                "question": example.question,
                "options": example.options,
                "gold": example.letter,
                "completion": text,
                "answer": answer,
                "correct": answer == example.letter,
                "formatted": is_formatted(text, example.letters),
                "forced_answer": forced,
                "forced_correct": forced == example.letter,
                "letter_logprobs": logprobs,
                "length": len(group.completions[0]),
                "truncated": group.truncated[0],
            }
        )
    return rows


@torch.no_grad()
def forced_choice(
    policy: Policy, prompts: Sequence[Any], examples: Sequence[VQAExample], texts: Sequence[str]
) -> list[list[float]]:
    """Log-probability of each option's letter after the reasoning in `texts`, normalised over the
    options.

    The letters are the completions of one group, so they share their prompt as a rollout's do.
    """
    groups = []
    for prompt, example, text in zip(prompts, examples, texts, strict=True):
        answers = [completion_text(reasoning(text), letter) for letter in example.letters]
        groups.append(policy.group(prompt, answers))
    scores: list[list[float]] = [[] for _ in groups]
    for chosen in policy.passes(groups):
        logprobs, _ = policy.logprobs([groups[i] for i in chosen], temperature=1.0)  # (n,)
        lengths = [len(ids) for i in chosen for ids in groups[i].completions]
        totals = iter([part.sum() for part in logprobs.split(lengths)])
        for i in chosen:
            letters = torch.stack([next(totals) for _ in groups[i].completions])  # (options,)
            scores[i] = letters.log_softmax(dim=0).tolist()
    return scores


def predict_all(
    policy: Policy, examples: Sequence[VQAExample], config: Config, batch_size: int = 64
) -> Iterator[Row]:
    """`predict` in batches, a row as soon as it is there."""
    with tqdm(total=len(examples), desc="scoring", leave=False, disable=not examples) as bar:
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            yield from predict(policy, batch, config.max_completion_length)
            bar.update(len(batch))


def load_tests(config: Config) -> dict[str, list[VQAExample]]:
    """The test questions of each modality to score: the one trained on first, then the unseen.

    Raises UsageError where there are none, and says so where there are fewer than asked for.
    """
    tests = {}
    for modality in (config.modality, *config.ood_modalities):
        examples = data.load(
            config.data, modality, split="test", size=config.eval_size, seed=config.seed
        )
        if not examples:
            remedy = "use --eval-size 300" if not config.eval_size else "leave it out of --ood"
            raise UsageError(f"--data {config.data}: no {modality} test question; {remedy}")
        if len(examples) < config.eval_size:
            there = f"{len(examples)} {modality} test questions, all that there are"
            print(f"{there}; {config.eval_size} were asked for", file=sys.stderr)
        tests[modality] = examples
    return tests


def evaluate(
    policy: Policy,
    config: Config,
    tests: dict[str, list[VQAExample]],
    run: Path,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Score base and trained on each modality's questions. Answers go to `run`/predictions."""
    table: dict[str, Any] = {"results": {m: {} for m in MODELS}, "chance": {}, "gains": {}}
    for modality, examples in tests.items():
        table["chance"][modality] = sum(1 / len(e.options) for e in examples) / len(examples)
        rows = {}
        for model in MODELS:
            file = run / "predictions" / f"{model}-{modality}.jsonl"
            with policy.base() if model == "base" else nullcontext():
                rows[model] = kept_rows(
                    file,
                    examples,
                    lambda missing: predict_all(policy, missing, config, batch_size),
                )
            table["results"][model][modality] = cell(rows[model])
        table["gains"][modality] = {
            "accuracy": gain(rows["base"], rows["trained"], "correct"),
            "forced_choice": gain(rows["base"], rows["trained"], "forced_correct"),
        }
    return table


def main(argv: Sequence[str] | None = None) -> None:
    about = "Score a run's base and trained policy on seen and unseen modalities."
    options = Options(**parse_flags(Options, argv, "evaluate.py", about))
    if options.json and not Path(options.json).absolute().parent.is_dir():
        raise UsageError(f"--json {options.json}: no such folder; make it first")
    run = Path(options.run) if options.run else newest_run()
    names = ("data", "ood", "eval_size", "device", "threads", "cache")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    config = with_names(dataclasses.replace(Config.load(run / "config.json"), **given))
    tests = load_tests(config)
    policy = open_policy(config, run / "adapter")
    # Answers to questions of another data set are kept apart, should two have the same ids.
    folder = run / "other" / config.data.replace("/", "_") if options.data else run
    table = evaluate(policy, config, tests, folder, options.batch_size)
    print(f"{run}: {config.model} on {config.data}, trained on {config.modality}, greedy")
    print(render(table))
    if config.data.startswith("phantom"):
        print("Phantoms are drawn, not medical data.")
    if options.json:
        Path(options.json).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with exit_on_usage_error("evaluate.py"):
        try:
            main()
        except OSError as error:  # answers are written all along
            raise UsageError(f"{error.filename}: {error.strerror}; make room there") from None

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
from grpo.config import Config, UsageError, exit_on_usage_error
from grpo.flags import names_in, option, parse_flags
from models.policy import Policy, load_policy
from rewards.parse import answer_letter, is_formatted, reasoning
from rewards.table import MODELS, Row, cell, gain, render


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of evaluate.py; what is not given is as the run had it."""

    run: str | None = option("what", None, "Run folder (none: the newest under runs/).")
    ood: str | None = option("what", None, "Unseen modalities to score, or none.")
    eval_size: int | None = option("what", None, "Test questions of each modality.", ge=1)
    json: str | None = option("output", None, "Also write the table to this file.")
    batch_size: int = option("machine", 64, "Questions answered together.", ge=1)
    device: str | None = option("machine", None, "auto, cpu, cuda or cuda:N.")
    threads: int | None = option("machine", None, "CPU threads; 0 for torch's own choice.", ge=0)
    cache: str | None = option("machine", None, "Folder for image features; auto or none.")


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


def kept_predictions(
    policy: Policy, examples: Sequence[VQAExample], config: Config, file: Path, batch_size: int
) -> list[Row]:
    """`predict` for what `file` does not hold yet, added to it as it comes; all rows, in order."""
    rows = {row["id"]: row for row in _read_rows(file)}
    missing = [example for example in examples if example.id not in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        bar = tqdm(total=len(missing), desc=file.stem, leave=False, disable=not missing)
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for row in predict(policy, batch, config.max_completion_length):
                rows[row["id"]] = row
                out.write(json.dumps(row) + "\n")
            out.flush()
            bar.update(len(batch))
        bar.close()
    return [rows[example.id] for example in examples]


def _read_rows(file: Path) -> Iterator[Row]:
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # cut off while it was written: that question is asked again
                return


def evaluate(
    policy: Policy, config: Config, modalities: Sequence[str], run: Path, batch_size: int = 64
) -> dict[str, Any]:
    """Score base and trained on each modality's test split. Answers go to `run`/predictions."""
    table: dict[str, Any] = {"results": {m: {} for m in MODELS}, "chance": {}, "gains": {}}
    for modality in modalities:
        examples = data.load(
            config.data, modality, split="test", size=config.eval_size, seed=config.seed
        )
        if not examples:
            raise UsageError(
                f"--data {config.data} has no {modality} test question; drop {modality}"
            )
        table["chance"][modality] = sum(1 / len(e.options) for e in examples) / len(examples)
        rows = {}
        for model in MODELS:
            file = run / "predictions" / f"{model}-{modality}.jsonl"
            with policy.base() if model == "base" else nullcontext():
                rows[model] = kept_predictions(policy, examples, config, file, batch_size)
            table["results"][model][modality] = cell(rows[model])
        table["gains"][modality] = {
            "accuracy": gain(rows["base"], rows["trained"], "correct"),
            "forced_choice": gain(rows["base"], rows["trained"], "forced_correct"),
        }
    return table


def newest_run(root: Path = Path("runs")) -> Path:
    """The run under `root` that finished last."""
    runs = sorted(root.glob("*/summary.json"), key=lambda file: file.stat().st_mtime)
    if not runs:
        raise UsageError(
            f"no finished run under {root}/; train one: python train.py --modality MRI"
        )
    return runs[-1].parent


def main(argv: Sequence[str] | None = None) -> None:
    about = "Score a run's base and trained policy on seen and unseen modalities."
    options = Options(**parse_flags(Options, argv, "evaluate.py", about))
    run = Path(options.run) if options.run else newest_run()
    given = {
        k: v
        for k in ("ood", "eval_size", "device", "threads", "cache")
        if (v := getattr(options, k)) is not None
    }
    config = dataclasses.replace(Config.load(run / "config.json"), **given)
    modalities = [config.modality, *(m for m in names_in(config.ood) if m != config.modality)]
    policy = open_policy(config, run / "adapter")
    table = evaluate(policy, config, modalities, run, options.batch_size)
    print(f"{run}: {config.model} on {config.data}, trained on {config.modality}, greedy")
    print(render(table))
    if config.data.startswith("phantom"):
        print("Phantoms are drawn, not medical data.")
    if options.json:
        Path(options.json).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with exit_on_usage_error("evaluate.py"):
        main(sys.argv[1:])

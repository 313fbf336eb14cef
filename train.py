"""Fine-tune a policy on one modality, then score it there and on unseen ones.

    python train.py --modality MRI --group-size 8
    python train.py --help

Flags make a configuration, the configuration makes data, policy and rewards, and grpo/loop.py does
the work.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import data
import rewards
from data.example import VQAExample
from data.order import question_order
from data.prompts import completion_text
from evaluate import evaluate, open_policy, predict
from grpo.config import Config, UsageError, exit_on_usage_error
from grpo.flags import names_in
from grpo.loop import grpo
from grpo.sft import sft
from models.policy import Policy
from rewards.table import cell, points

PACKAGES = ("torch", "transformers", "peft", "safetensors", "pillow", "numpy")


def main(argv: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    config = Config.from_flags(argv)
    terms = rewards.parse_rewards(config.reward)
    skipped: set[Any] = set()
    examples = load_split(config, "train", config.train_size, skipped)
    validation = load_split(config, "val", config.val_size, skipped) if config.eval_every else []
    policy = open_policy(config, starting_adapter(config))
    run = new_run(config)
    (run / "skipped.jsonl").write_text("".join(f"{json.dumps(vars(s))}\n" for s in sorted(skipped)))

    draw = question_order(examples, config.seed, config.prompts_per_step)
    if config.method == "sft":
        steps = sft(policy, draw, sft_target(config), config)
    else:
        steps = grpo(policy, draw, reward_function(terms), config)

    bar = tqdm(total=config.steps, desc=f"{config.method} on {config.modality}", dynamic_ncols=True)
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for metrics in steps:
            step = int(metrics["step"])
            if config.eval_every and (step % config.eval_every == 0 or step == config.steps):
                metrics |= validate(policy, validation, config)
            metrics["memory/peak_mb"] = peak_memory(policy)
            log.write(json.dumps(metrics) + "\n")
            log.flush()
            bar.set_postfix_str(progress(metrics, terms))
            bar.update()
    bar.close()
    policy.save(run / "adapter")

    modalities = [config.modality, *(m for m in names_in(config.ood) if m != config.modality)]
    table = evaluate(policy, config, modalities, run) if config.eval_size else {}
    summary = {
        **table,
        "steps": config.steps,
        "seconds": round(time.monotonic() - started, 1),
        "peak_mb": peak_memory(policy),
    }
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(closing_line(run, config, table))


def load_split(config: Config, split: str, size: int, skipped: set[Any]) -> list[VQAExample]:
    """Questions of the training modality; says so when there are fewer than asked for."""
    examples = data.load(
        config.data, config.modality, split=split, size=size, seed=config.seed, skipped=skipped
    )
    if not examples:
        raise UsageError(f"--data {config.data}: no {config.modality} question for {split}")
    if len(examples) < size:
        found = f"{len(examples)} {config.modality} questions for {split}"
        print(f"train.py: {found}, all that there are; {size} were asked for", file=sys.stderr)
    return examples


def starting_adapter(config: Config) -> Path | None:
    """The adapter folder that --init sft:RUN names."""
    if config.init is None:
        return None
    folder = Path(config.init.removeprefix("sft:")) / "adapter"
    if not folder.is_dir():
        raise UsageError(f"--init {config.init}: no folder {folder}; name a finished run")
    return folder


def reward_function(terms: Sequence[rewards.Reward]) -> Callable[..., Any]:
    """The rewards as the loop calls them: (examples, texts) -> (totals, parts by name)."""

    def reward(examples: list[VQAExample], texts: list[str]) -> Any:
        columns = {
            "answer": [e.letter for e in examples],
            "letters": [e.letters for e in examples],
            "options": [e.options for e in examples],
            "modality": [e.modality for e in examples],
            "question_type": [e.question_type for e in examples],
            "reasoning": [e.reasoning for e in examples],
            "id": [e.id for e in examples],
        }
        return rewards.score(terms, [e.prompt for e in examples], texts, columns)

    return reward


def sft_target(config: Config) -> Callable[[VQAExample], str]:
    """What the supervised baseline imitates: the label alone, or (privileged) reasoning too."""

    def target(example: VQAExample) -> str:
        if config.sft_target == "answer":
            return completion_text("", example.letter)
        if not example.reasoning:
            raise UsageError(
                f"--sft-target reasoning: {example.id} has no reference reasoning; use answer"
            )
        return completion_text(example.reasoning, example.letter)

    return target


def validate(policy: Policy, examples: Sequence[VQAExample], config: Config) -> dict[str, float]:
    """Greedy scores on the validation split."""
    rows = []
    for start in range(0, len(examples), 64):
        rows += predict(policy, examples[start : start + 64], config.max_completion_length)
    scores = cell(rows)
    return {f"val/{name}": scores[name] for name in ("accuracy", "format_rate", "forced_choice")}


def new_run(config: Config) -> Path:
    """A new run folder with its config.json."""
    name = (
        f"{time.strftime('%Y%m%d-%H%M%S')}-{config.recipe}-{config.modality}-g{config.group_size}"
    )
    run = Path(config.out) if config.out else Path("runs") / name
    if (run / "metrics.jsonl").exists():
        raise UsageError(f"--out {run}: a run lies there already; name another folder")
    try:
        run.mkdir(parents=True, exist_ok=True)
        config.save(
            run / "config.json",
            versions={name: version(name) for name in PACKAGES}
            | {"python": platform.python_version()},
            git_commit=git_commit(),
            threads=torch.get_num_threads(),
        )
    except OSError as error:
        raise UsageError(
            f"--out {run}: cannot write there ({error.strerror}); name another folder"
        ) from None
    return run


def git_commit() -> str | None:
    """The commit of this checkout, where there is one."""
    where = Path(__file__).parent
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True
        )
    except OSError:
        return None
    return asked.stdout.strip() or None


def peak_memory(policy: Policy) -> float:
    """Most memory the run held so far, in MB: of the GPU, or of the process."""
    if policy.device.type == "cuda":
        return torch.cuda.max_memory_allocated(policy.device) / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)


def progress(metrics: dict[str, float], terms: Sequence[rewards.Reward]) -> str:
    """The numbers beside the bar."""
    if "reward" not in metrics:
        return f"loss {metrics['loss']:.3f}"
    parts = " ".join(f"{t.name} {metrics[f'rewards/{t.name}/mean']:.2f}" for t in terms)
    return (
        f"reward {metrics['reward']:.2f} ({parts}) kl {metrics.get('kl', 0):.3f} "
        f"length {metrics['completions/mean_length']:.0f} "
        f"signal {1 - metrics['frac_reward_zero_std']:.0%}"
    )


def closing_line(run: Path, config: Config, table: dict[str, Any]) -> str:
    """What was gained, and what to type next."""
    if not table:
        return f"{run}: trained, not scored. Next: python evaluate.py --run {run} --eval-size 300"
    gains = "; ".join(
        f"{modality} strict {points(of['accuracy'])}, forced choice {points(of['forced_choice'])}"
        for modality, of in table["gains"].items()
    )
    return f"{run}: {gains} (points, 95 % interval). Next: python evaluate.py --ood {config.ood}"


if __name__ == "__main__":
    with exit_on_usage_error("train.py"):
        try:
            main()
        except rewards.RewardError as error:
            raise UsageError(str(error)) from None

"""Fine-tune a policy on one modality, then score it there and on unseen ones.

    python train.py --modality MRI --group-size 8
    python train.py --explain           one step, in the paper's equations
    python train.py --dry-run           what memory it takes, and what fits
    python train.py --help

Flags make a configuration, the configuration makes data, policy and rewards, and grpo/loop.py does
the work.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import rewards
from data.asking import asked, load_split, load_tests, with_names
from data.example import VQAExample, columns
from data.order import question_order
from data.rows import BY_DESIGN, Skipped, summary
from data.showing import described
from data.splits import constant_answers, has_constant_answer
from data.variety import in_all_ways, varied
from evaluate import ask, in_batches, predict
from grpo.config import Config, UsageError, cache_folder, exit_on_usage_error
from grpo.explain import explanation, one_step
from grpo.loop import grpo
from grpo.optim import adamw
from grpo.options import Options
from grpo.progress import Progress, closing_line
from grpo.record import Record, check_tensorboard
from grpo.run import check_out, new_run, peak_memory, starting_adapter, write_json
from grpo.screen import hushed
from grpo.sft import sft
from grpo.trace import write_trace
from models.dry_run import NOT_ASKED, MemoryFlags, before_the_first_step, memory_flags
from models.opening import open_policy, starting_model
from models.policy import Policy
from rewards.figures import cell
from rewards.judge import Judge, open_judges
from rewards.judged import judged_rewards
from rewards.local import Encoder
from rewards.render import points
from rewards.table import tabulate


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Raises UsageError and RewardError for all that a user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    explains = "--explain" in words  # no setting of a run: it makes none
    words, memory = memory_flags(words)
    config = with_names(Config.from_flags(one_step(words) if explains else words))
    with hushed(config.quiet):
        last_words = train(config, explains, memory)
    print(last_words)


def train(config: Config, explains: bool = False, memory: MemoryFlags = NOT_ASKED) -> str:
    """Data, policy and rewards from the settings, the steps, the table; and what to say at the end.

    With `explains`, the first step is all there is, and a text about it; in a dry run, the plan of
    its memory.
    """
    started = time.monotonic()
    config = replace(config, model=starting_model(config.model, config.init))
    check_out(config)
    check_tensorboard(config)
    judges, terms = [], []
    if config.method == "grpo":
        judges = open_judges(config.judge, config.judge_model, cache_folder(config.cache))
        terms = reward_terms(config, judges)
    skipped: set[Skipped] = set()
    examples = load_split(config, "train", config.train_size, skipped)
    validation = load_split(config, "val", config.val_size, skipped) if config.eval_every else []
    validation = asked(validation, config.prompt)
    tests = load_tests(config, skipped) if config.eval_size else {}
    say_of_data(config, examples, tests, skipped)
    target = sft_target(config, examples)
    policy = open_policy(config, starting_adapter(config))
    plan = before_the_first_step(policy, in_all_ways(examples, config.ways), target, config, memory)
    draw = varied(
        question_order(examples, config.seed, config.prompts_per_step),
        config.seed,
        config.ways,
        config.shuffle_options,
    )
    optimizer = adamw(policy.parameters(), config)
    if config.method == "sft":
        steps = sft(policy, optimizer, draw, target, config)
    else:
        steps = grpo(policy, optimizer, draw, reward_function(terms), config)
    if explains or memory.dry_run:
        return plan or explanation(policy, next(steps), config, described)
    run = new_run(config, resolved(policy))
    lines = (json.dumps(vars(row)) + "\n" for row in sorted(skipped, key=str))
    (run / "skipped.jsonl").write_text("".join(lines), encoding="utf-8")
    try:
        with Record(run, config) as log, Progress(config) as progress:
            for this in steps:
                metrics, step = this.metrics, int(this.metrics["step"])
                if config.eval_every and (step % config.eval_every == 0 or step == config.steps):
                    metrics |= validate(policy, validation, config)
                for judge in judges:
                    metrics |= judge.counts()
                metrics["memory/peak_mb"] = peak_memory(policy.device)
                if step in config.traced_steps and this.rollout:
                    write_trace(run / "trace", this, config, described, policy.chat.pieces)
                log.add(metrics)
                progress.show(this)
    except KeyboardInterrupt:
        print("train.py: interrupted; saving and scoring what was learned", file=sys.stderr)
    except rewards.RewardError as error:  # a judge that is gone, say
        policy.save(run / "adapter")
        raise UsageError(f"{error}; what was learned so far is in {run}/adapter") from None
    policy.save(run / "adapter")

    answers = ask(policy, config, tests, run, Options()) if tests else {}
    table = tabulate(answers, config.modality) if tests else {}
    record = {
        **table,
        "data": config.data + (" (drawn, not medical data)" if is_phantom(config) else ""),
        "privileged": config.method == "sft" and config.sft_target == "reasoning",
        "steps": config.steps,
        "seconds": round(time.monotonic() - started, 1),
        "peak_mb": peak_memory(policy.device),
    }
    write_json(run / "summary.json", record)
    return closing_line(run, config, gained(table, config))


def resolved(policy: Policy) -> dict[str, Any]:
    """What the flags left to "auto"."""
    return {
        "device": str(policy.device),
        "dtype": str(policy.dtype).removeprefix("torch."),
        "gradient_checkpointing": policy.checkpointing,
        "threads": torch.get_num_threads(),
    }


def say_of_data(
    config: Config,
    examples: Sequence[VQAExample],
    tests: Mapping[str, Sequence[VQAExample]],
    skipped: set[Skipped],
) -> None:
    """What to know of the data before training. With --strict, a bad row is the end of it."""
    faults = [row for row in skipped if row.reason not in BY_DESIGN]
    if faults and config.strict:
        first = min(faults, key=lambda row: (row.file, row.row))
        where = f"the first is {first.row or 'all'} of {first.file}: {first.reason}"
        raise UsageError(f"--strict: {summary(faults)}; {where}; mend them, or leave --strict out")
    if skipped:
        print(f"train.py: rows left out: {summary(skipped)}", file=sys.stderr)
    if tests and (constant := constant_answers(examples)):
        counts = ", ".join(
            f"{sum(has_constant_answer(e, constant) for e in test)} of {len(test)} {modality}"
            for modality, test in tests.items()
        )
        print(f"train.py: test questions with one answer in training: {counts}", file=sys.stderr)


def reward_terms(config: Config, judges: Sequence[Judge | Encoder]) -> list[rewards.Reward]:
    """The rewards of --reward, those of judges among them; says where a rule stands in for one."""
    judged = judged_rewards(judges)
    terms = rewards.parse_rewards(config.reward, rewards.built_in(config.length_cap) | judged)
    if "consistency" in {term.name for term in terms} - judged.keys():
        print("train.py: consistency is judged by a rule; --judge for a model", file=sys.stderr)
    return terms


def reward_function(terms: Sequence[rewards.Reward]) -> Callable[..., Any]:
    """The rewards as the loop calls them: (examples, texts) -> (totals, parts by name)."""

    def reward(examples: list[VQAExample], texts: list[str]) -> Any:
        return rewards.score(terms, [e.prompt for e in examples], texts, columns(examples))

    return reward


def sft_target(config: Config, examples: Sequence[VQAExample]) -> Callable[[VQAExample], str]:
    """What the supervised baseline imitates: the label alone, or (privileged) reasoning too."""
    reasons = config.sft_target == "reasoning"
    if config.method == "sft" and reasons and config.ways == ("direct",):
        raise UsageError("--sft-target reasoning: the questions ask for none; use answer")
    without = [example.id for example in examples if not example.reasoning]
    if config.method == "sft" and reasons and without:
        problem = f"{len(without)} questions have no reference reasoning, {without[0]} first"
        raise UsageError(f"--sft-target reasoning: {problem}; use answer")

    def target(example: VQAExample) -> str:
        thought = example.reasoning if reasons else ""
        return example.completion(None if example.asked == "direct" else thought)

    return target


def validate(policy: Policy, examples: Sequence[VQAExample], config: Config) -> dict[str, float]:
    """Greedy scores on the validation split."""
    start = time.perf_counter()
    answers = partial(predict, policy, config)
    scores = cell(list(in_batches(answers, Options().batch_size, examples)))
    names = ("accuracy", "format_rate", "forced_choice")
    seconds = time.perf_counter() - start
    return {f"val/{name}": scores[name] for name in names} | {"time/validation": seconds}


def is_phantom(config: Config) -> bool:
    return config.data.partition(":")[0] == "phantom"


def gained(table: dict[str, Any], config: Config) -> str:
    """The gains of a table in one phrase; "" where nothing was scored."""
    if not table:
        return ""
    gains = "; ".join(
        f"{modality} strict {points(of['accuracy'])}, forced choice {points(of['forced_choice'])}"
        for modality, of in table["gains"]["trained"].items()
    )
    drawn = ", drawn phantoms, not medical data" if is_phantom(config) else ""
    return f"{gains} (points, 95 % interval{drawn})"


if __name__ == "__main__":
    with exit_on_usage_error("train.py", rewards.RewardError):
        main()

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
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import rewards.scoring
from data.evaluation_questions import (
    Tests,
    fingerprint,
    load_split,
    load_tests,
    load_validation,
    say_of_data,
    with_names,
)
from data.example import VQAExample, columns
from data.rows import Skipped
from data.showing import described
from data.targets import sft_target
from data.training_questions import question_order
from data.variety import in_all_ways, varied
from evaluate import ask, in_batches, predict
from grpo.distributed import gathered, processes, rank, share, total
from grpo.explain.explanation import explanation, one_step
from grpo.loop import grpo
from grpo.optim import adamw
from grpo.run.checkpoint import Keeper, cut_back, origin, restore, save_adapter
from grpo.run.folder import peak_memory, run_folder, starting_adapter, write_json, write_whole
from grpo.run.metrics_log import check_tensorboard, history
from grpo.run.progress import closing_line
from grpo.run.recorder import follow
from grpo.run.resume import Halted, Point, Stop, going_on, starting_point
from grpo.run.skipped import SkippedSteps
from grpo.run.terminal import hushed
from grpo.run.trace import write_trace
from grpo.settings.config import Config, cache_folder
from grpo.settings.errors import exit_on_usage_error
from grpo.settings.options import Options
from grpo.sft import sft
from grpo.step import Step
from models.dry_run import NOT_ASKED, MemoryFlags, before_the_first_step, memory_flags
from models.images.prefetch import prefetching
from models.open_policy import open_policy, starting_model
from models.policy import Policy
from rewards.evaluation.scores import cell
from rewards.evaluation.table import tabulate
from rewards.evaluation.text import points
from rewards.judges.judge import Judge, open_judges
from rewards.judges.judge_rewards import judged_rewards
from rewards.judges.local import Encoder


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Raises UsageError and RewardError for all that a user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with processes():
            print(begin(words))
    except Halted as halt:
        print(f"train.py: {halt}; go on with: {going_on(words, halt.run)}", file=sys.stderr)
        raise SystemExit(halt.code) from None


def begin(words: Sequence[str]) -> str:
    """Train as the words of a command line say."""
    explains = "--explain" in words  # no setting of a run: it makes none
    words, memory = memory_flags(words)
    config = with_names(Config.from_flags(one_step(words) if explains else words))
    with hushed(config.quiet):
        return train(config, explains, memory)


def train(config: Config, explains: bool = False, memory: MemoryFlags = NOT_ASKED) -> str:
    """Data, policy and rewards from the settings, the steps, the table; and what to say at the end.

    With `explains`, the first step is all there is, and a text about it; in a dry run, the plan of
    its memory.
    """
    started = time.monotonic()
    config = replace(config, model=starting_model(config.model, config.init))
    point = Point() if explains else starting_point(config)
    if point.finished:
        return f"{point.run}: is finished. Next: python evaluate.py --run {point.run}"
    config = replace(config, out=str(point.run) if point.run else config.out)
    check_tensorboard(config)
    judges, terms = [], []
    if config.method == "grpo":
        judges = open_judges(config.judge, config.judge_model, cache_folder(config.cache))
        terms = reward_terms(config, judges)
    skipped: set[Skipped] = set()
    examples = load_split(config, "train", config.train_size, skipped)
    validation = load_validation(config, skipped) if config.eval_every else {}
    tests = load_tests(config, skipped) if config.eval_size else {}
    say_of_data(config, examples, tests, skipped)
    target = sft_target(config, examples)
    adapter = starting_adapter(config)
    begun_with = origin(fingerprint(examples), adapter)
    policy = open_policy(config, adapter)
    plan = before_the_first_step(policy, in_all_ways(examples, config.ways), target, config, memory)
    optimizer = adamw(policy.parameters(), config)
    if point.checkpoint:
        started -= restore(point.checkpoint, policy, optimizer, begun_with)
    draw = question_order(examples, config.seed, config.prompts_per_step)
    draw = varied(draw, config.seed, config.ways, config.shuffle_options)
    draw = prefetching(draw, policy.prefetch, share, config.prompts_per_step, config.steps)
    if config.method == "sft":
        steps = sft(policy, optimizer, draw, target, config, point.step)
    else:
        steps = grpo(policy, optimizer, draw, reward_function(terms), config, point.step)
    if explains or memory.dry_run:
        return plan or explanation(policy, next(steps), config, described)
    run = Path(gathered(None if rank() else str(prepare(config, policy, point, skipped)))[0])
    keeper = Keeper(run, policy, optimizer, config, begun_with, started)
    skips = SkippedSteps(config, history(run))
    look = partial(watch, policy, config, run, judges, validation, skips)
    with Stop(run, config.quiet) as stop:
        follow(steps, config, keeper, stop, look, rewards.scoring.RewardError)
        save_adapter(run, policy)
        stop.now()
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
    if not rank():
        write_json(run / "summary.json", record)
    return closing_line(run, config, gained(table, config))


def prepare(config: Config, policy: Policy, point: Point, skipped: set[Skipped]) -> Path:
    """The run's folder, cut back to where the run goes on, with what of the data was left out."""
    run = run_folder(config, policy, point.run)
    if point.run:
        cut_back(run, point.checkpoint, config.steps)
    lines = (json.dumps(vars(row)) + "\n" for row in sorted(skipped, key=str))
    write_whole(run / "skipped.jsonl", "".join(lines).encode())
    return run


def watch(
    policy: Policy,
    config: Config,
    run: Path,
    judges: Sequence[Judge | Encoder],
    validation: Tests,
    skips: SkippedSteps,
    this: Step,
) -> None:
    """Add to a step's metrics what the loop does not know, and keep the record of a traced one."""
    metrics, step = this.metrics, int(this.metrics["step"])
    if config.eval_every and (step % config.eval_every == 0 or step == config.steps):
        metrics |= validate(policy, validation, config)
    for judge in judges:
        metrics |= total(judge.counts())
    metrics["memory/peak_mb"] = max(gathered(peak_memory(policy.device)))
    metrics["memory/cuts"] = sum(gathered(this.cuts))
    if metrics["memory/cuts"]:
        problem = f"step {step}: out of memory, and done again in halves"
        print(f"train.py: {problem}; --dry-run says what fits at once", file=sys.stderr)
    if sentence := skips.see(this):
        print(f"train.py: {sentence}", file=sys.stderr)
    if step in config.traced_steps and this.rollout and not rank():
        write_trace(run / "trace", this, config, described, policy.chat.pieces)


def reward_terms(config: Config, judges: Sequence[Judge | Encoder]) -> list[rewards.scoring.Reward]:
    """The rewards of --reward, those of judges among them; says where a rule stands in for one."""
    judged = judged_rewards(judges)
    known = rewards.scoring.built_in(config.length_cap) | judged
    terms = rewards.scoring.parse_rewards(config.reward, known)
    if "consistency" in {term.name for term in terms} - judged.keys():
        print("train.py: consistency is judged by a rule; --judge for a model", file=sys.stderr)
    return terms


def reward_function(terms: Sequence[rewards.scoring.Reward]) -> Callable[..., Any]:
    """The rewards as the loop calls them: (examples, texts) -> (totals, parts by name)."""

    def reward(examples: list[VQAExample], texts: list[str]) -> Any:
        return rewards.scoring.score(terms, [e.prompt for e in examples], texts, columns(examples))

    return reward


def validate(policy: Policy, validation: Tests, config: Config) -> dict[str, float]:
    """Greedy scores on the validation questions, as val/accuracy; of unseen CT, val/CT/accuracy."""
    start = time.perf_counter()
    answers = partial(predict, policy, config)
    found = {}
    for modality, examples in validation.items():
        scores = cell(list(in_batches(policy, answers, Options().batch_size, examples)))
        place = "val" if modality == config.modality else f"val/{modality}"
        for name in ("accuracy", "format_rate", "forced_choice"):
            found[f"{place}/{name}"] = scores[name]
    return found | {"time/validation": time.perf_counter() - start}


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
    with exit_on_usage_error("train.py", rewards.scoring.RewardError):
        main()

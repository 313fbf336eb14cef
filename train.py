"""Fine-tune a policy on one modality, then score it there and on unseen ones.

    python train.py --modality MRI --group-size 8
    python train.py --explain           one step, in the paper's equations
    python train.py --dry-run           what memory it takes, and what fits
    python train.py --help

Flags make a configuration, the configuration makes rewards, questions and a policy, and
grpo/loop.py trains it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.example import columns
from data.load import fingerprint, is_drawn, with_names
from data.showing import asked_and_gold, described
from data.training_questions import in_all_ways, load_questions, question_order, sft_target, varied
from evaluate import score_run, validate
from grpo.distributed import processes, rank, share, total
from grpo.explain.explanation import explanation, one_step
from grpo.loop import grpo
from grpo.optim import adamw
from grpo.run.atomic import write_json
from grpo.run.checkpoint import Checkpointer, origin, restore
from grpo.run.interrupt import Halted, Stop
from grpo.run.machine import memory_metrics, peak_memory
from grpo.run.metrics_log import check_tensorboard, history
from grpo.run.progress import Progress, closing_line
from grpo.run.recorder import Recorder
from grpo.run.resume import Point, going_on, open_run, starting_point
from grpo.run.terminal import hushed
from grpo.settings.config import Config, cache_folder
from grpo.settings.errors import UsageError, exit_on_usage_error
from grpo.sft import sft
from models.dry_run import NOT_ASKED, MemoryFlags, before_the_first_step, memory_flags
from models.images.prefetch import prefetching
from models.open_policy import open_policy, starting_adapter, starting_model
from models.policy import Policy
from rewards.evaluation.rows import points
from rewards.judges.judge import open_judges
from rewards.judges.judge_rewards import judged_rewards
from rewards.scoring import Reward, RewardError, built_in, parse_rewards, score


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Raises UsageError and RewardError for all that a user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    explains = "--explain" in words  # no setting of a run: it makes none
    try:
        with processes():
            flags, memory = memory_flags(words)
            config = with_names(Config.from_flags(one_step(flags) if explains else flags))
            with hushed(config.quiet):
                last = train(config, explains, memory)
            print(last)
    except Halted as halt:
        print(f"train.py: {halt}; go on with: {going_on(words, halt.run)}", file=sys.stderr)
        raise SystemExit(halt.code) from None


def train(config: Config, explains: bool = False, memory: MemoryFlags = NOT_ASKED) -> str:
    """Rewards, questions, policy, the steps, the scores; returns what to print at the end.

    With `explains` the first step is all there is, and a text about it; in a dry run, the plan of
    its memory.
    """
    started = time.monotonic()
    config = replace(config, model=starting_model(config.model, config.init))
    point = Point() if explains else starting_point(config)
    if point.finished:
        return f"{point.run}: is finished. Next: python evaluate.py --run {point.run}"
    config = replace(config, out=str(point.run) if point.run else config.out)
    check_tensorboard(config)

    judges, reward = open_rewards(config)
    examples, validation, tests, skipped = load_questions(config)
    target = sft_target(config, examples)

    adapter = starting_adapter(config)
    policy = open_policy(config, adapter)
    asked = in_all_ways(examples, config.ways)
    plan = before_the_first_step(policy, asked, target, config, memory)
    optimizer = adamw(policy.parameters(), config)
    begun_with = origin(fingerprint(examples), adapter)
    started -= restore(point.checkpoint, policy, optimizer, begun_with)

    draw = question_order(examples, config.seed, config.prompts_per_step)
    draw = varied(draw, config.seed, config.ways, config.shuffle_options)
    draw = prefetching(draw, policy.prefetch, share, config.prompts_per_step, config.steps)
    if config.method == "sft":
        steps = sft(policy, optimizer, draw, target, config, point.step)
    else:
        steps = grpo(policy, optimizer, draw, reward, config, point.step)
    if memory.dry_run:
        return plan
    if explains:
        return explanation(policy, next(steps), config, described)

    label = f"{config.recipe}-{config.modality}-g{config.group_size}"
    run = open_run(config, policy, label, point, map(vars, sorted(skipped, key=str)))
    checkpointer = Checkpointer(run, policy, optimizer, config, begun_with, started)
    with Stop(run, config.quiet) as stop:
        title = f"{config.method} on {config.modality}"
        progress = Progress(config, title, asked_and_gold, before=history(run))
        with Recorder(checkpointer, stop, progress, described, policy.chat.pieces) as record:
            for step in steps:
                if config.due(config.eval_every, step.metrics["step"]):
                    step.metrics |= validate(policy, validation, config)
                for judge in judges:
                    step.metrics |= total(judge.counts())
                step.metrics |= memory_metrics(policy.device, step.cuts)
                record.record(step)
                if record.stop_requested:
                    break
        table = score_run(policy, config, tests, run)
    return finish(run, config, policy, table, started)


def finish(run: Path, config: Config, policy: Policy, table: dict[str, Any], started: float) -> str:
    """Write summary.json; returns the run's last line."""
    summary = {
        **table,
        "data": config.data + (" (drawn, not medical data)" if is_drawn(config.data) else ""),
        "privileged": config.method == "sft" and config.sft_target == "reasoning",
        "steps": config.steps,
        "seconds": round(time.monotonic() - started, 1),
        "peak_mb": peak_memory(policy.device),
    }
    if not rank():
        write_json(run / "summary.json", summary)
    return closing_line(run, gained(table, config), config.ood_modalities, not config.out)


def open_rewards(config: Config) -> tuple[list[Any], Callable[..., Any]]:
    """The judges of --judge, and the rewards of --reward as the loop calls them.

    Prints a line if a rule stands in for a judge. Supervised training has neither.
    """
    if config.method == "sft":
        return [], reward_function([])
    judges = open_judges(config.judge, config.judge_model, cache_folder(config.cache))
    judged = judged_rewards(judges)
    terms = parse_rewards(config.reward, built_in(config.length_cap) | judged)
    if "consistency" in {term.name for term in terms} - judged.keys():
        print("train.py: consistency is judged by a rule; --judge for a model", file=sys.stderr)
    return judges, reward_function(terms)


def reward_function(terms: Sequence[Reward]) -> Callable[..., Any]:
    """The rewards as the loop calls them: (examples, texts) -> (totals, parts by name).

    It raises UsageError, after which a run can go on, in place of the rewards' own error.
    """

    def reward(examples: list[Any], texts: list[str]) -> Any:
        try:
            return score(terms, [e.prompt for e in examples], texts, columns(examples))
        except RewardError as error:
            raise UsageError(str(error)) from None

    return reward


def gained(table: dict[str, Any], config: Config) -> str:
    """The gains of a table in one phrase; "" where nothing was scored."""
    if not table:
        return ""
    gains = "; ".join(
        f"{modality} strict {points(gain['accuracy'])}, "
        f"forced choice {points(gain['forced_choice'])}"
        for modality, gain in table["gains"]["trained"].items()
    )
    drawn = ", drawn phantoms, not medical data" if is_drawn(config.data) else ""
    return f"{gains} (points, 95 % interval{drawn})"


if __name__ == "__main__":
    with exit_on_usage_error("train.py", RewardError):
        main()

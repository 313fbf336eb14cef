"""Fine-tune a policy on one modality, then score it there and on unseen ones.

    python train.py --modality MRI --group-size 8
    python train.py --explain           one step, in the paper's equations
    python train.py --dry-run           what memory it takes, and what fits

Flags make a configuration, which makes rewards, questions and a policy; grpo/loop.py trains it.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.controls.altered import blank_image
from data.example import columns, in_all_ways
from data.load import fingerprint, is_drawn, with_names
from data.showing import asked_and_gold, described
from data.training_questions import load_questions, sft_target, training_draw
from evaluate import score_run, validate
from grpo.distributed import connect, processes, share, total, world
from grpo.explain.explanation import explanation, one_step
from grpo.loop import grpo
from grpo.optim import adamw
from grpo.run.checkpoint import Checkpointer, Point, origin, restore
from grpo.run.folder import write_summary
from grpo.run.interrupt import Halted, Stop
from grpo.run.machine import memory_metrics, peak_memory
from grpo.run.metrics_log import history, reporting
from grpo.run.progress import Progress
from grpo.run.recorder import Recorder
from grpo.run.resume import going_on, open_run, starting_point
from grpo.run.steps import largest_step
from grpo.settings.config import Config, cache_folder
from grpo.settings.errors import UsageError, exit_on_usage_error, hushed
from grpo.settings.options import program_flags
from grpo.sft import sft
from models.images.prefetch import prefetching
from models.memory.plan import plan_memory
from models.open_policy import open_policy, refusal, starting_adapter, starting_model
from rewards.evaluation.text import gains
from rewards.judges.judge import open_judges
from rewards.judges.judge_rewards import reward_terms
from rewards.scoring import RewardError, score


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Raises UsageError and RewardError for all that a user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with processes():
            given, flags = program_flags(words)
            config = with_names(Config.from_flags(one_step(flags) if given.explain else flags))
            with hushed(config.quiet):
                print(train(config, given))
    except Halted as halt:
        print(f"train.py: {halt}; go on with: {going_on(words, halt.run)}", file=sys.stderr)
        raise SystemExit(halt.code) from None


def train(config: Config, given: Namespace) -> str:
    """Rewards, questions, policy, steps, scores; returns what to print at the end. --dry-run and
    --explain, among the flags `given` that are no settings, make no run folder."""
    started = time.monotonic()
    config = replace(config, model=starting_model(config.model, config.init))
    point = Point() if given.explain else starting_point(config)
    if point.finished:
        return f"{point.run}: is finished. Next: python evaluate.py --run {point.run}"
    config = replace(config, out=str(point.run) if point.run else config.out)
    judges, reward = open_rewards(config)
    examples, validation, tests, skipped = load_questions(config, refusal(config))
    target = sft_target(config, examples)
    adapter = starting_adapter(config)
    asked = in_all_ways(examples, config.ways)
    opened, plan = plan_memory(config, adapter, asked, target, largest_step, given, world())
    if given.dry_run:
        return plan
    policy = open_policy(opened, adapter)
    pieces = policy.chat.pieces
    connect(policy.device)
    optimizer = adamw(policy.parameters(), config)
    begun_with = origin(fingerprint(examples), adapter)
    restore(point, policy, optimizer, begun_with)
    started -= point.seconds  # a resumed run counts those that it had taken before
    draw = training_draw(examples, config)
    draw = prefetching(draw, policy.prefetch, share, config.prompts_per_step, config.steps)
    method, by = (sft, target) if config.method == "sft" else (grpo, reward)
    steps = method(policy, optimizer, draw, by, config, point.step)
    if given.explain:
        return explanation(policy, next(steps), config, described, pieces, given.page)

    run = open_run(config, policy, point, map(vars, sorted(skipped, key=str)))
    checkpoints = Checkpointer(run, policy, optimizer, config, begun_with, started)
    progress = Progress(config, asked_and_gold, before=history(run))
    with Stop(run, config.quiet) as stop, reporting(run, config) as trackers:
        recorder = Recorder(checkpoints, stop, progress, trackers, described, pieces, blank_image)
        with recorder.recording():
            for step in steps:
                if config.due(config.eval_every, step.metrics["step"]):
                    step.metrics |= validate(policy, validation, config)
                for judge in judges:
                    step.metrics |= total(judge.counts())
                step.metrics |= memory_metrics(policy.device, step.cuts)
                recorder.record(step)
                if recorder.stop_requested:  # leaving the recorder saves, then ends the run
                    break
        table = score_run(policy, config, tests, run)
        trackers.scores(table, config.steps)
    data = config.data + (" (drawn, not medical data)" if is_drawn(config.data) else "")
    measured = {"data": data, "peak_mb": peak_memory(policy.device)}
    write_summary(run, config, table | measured, started)
    return last_line(run, config, gains(table) if table else "")


def last_line(run: Path, config: Config, gained: str) -> str:
    """What was gained ("": nothing was scored), and what to type next."""
    named = f"--run {run} " if config.out else ""  # evaluate.py finds the newest run by itself
    again = f"python evaluate.py {named}--ood {','.join(config.ood_modalities) or 'none'}"
    if not gained:
        return f"{run}: trained, not scored. Next: {again} --eval-size 300"
    drawn = ", drawn phantoms, not medical data" if is_drawn(config.data) else ""
    return f"{run}: {gained} (points, 95 % interval{drawn}). Next: {again}"


def open_rewards(config: Config) -> tuple[list[Any], Callable[..., Any]]:
    """The judges of --judge, and the rewards of --reward as the loop calls them: (examples, texts,
    ids) -> (totals, parts by name). Supervised training has neither. A reward's own error becomes a
    UsageError, after which a run can go on."""
    judges, terms = [], []
    if config.method == "grpo":
        judges = open_judges(config.judge, config.judge_model, cache_folder(config.cache))
        terms = reward_terms(config, judges)

    def reward(examples: list[Any], texts: list[str], ids: list[list[int]]) -> Any:
        known = columns(examples) | {"completion_ids": ids}
        try:
            return score(terms, [e.prompt for e in examples], texts, known)
        except RewardError as error:
            raise UsageError(str(error)) from None

    return judges, reward


if __name__ == "__main__":
    with exit_on_usage_error("train.py", RewardError):
        main()

"""Score a run: base and trained policy, on the modality it was trained on and on unseen ones.

    python evaluate.py --ood CT,XRAY            the newest run
    python evaluate.py --run runs/NAME --controls full --markdown table.md
    python evaluate.py --image scan.png --question "Which side?" --options "left;right"

Answers are greedy. `predictions/` in the run folder keeps every one of them, so nothing is asked
twice, and evaluation.json the table, which the report shows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data import evaluation_questions as asking
from data.evaluation_questions import Tests, fingerprint, load_tests, with_names
from data.example import ImageFile, VQAExample
from grpo.distributed import by_all, processes, rank, share, world
from grpo.run.folder import newest_run, same_but_seed, write_json
from grpo.settings.config import Config, cache_folder
from grpo.settings.errors import UsageError, exit_on_usage_error
from grpo.settings.flags import names_in, parse_flags
from grpo.settings.options import Options
from grpo.settings.recipes import RECIPES
from models.answering import answer, reference_nll, samples
from models.export import export_merged, refuse_taken
from models.loading.load import SHIPPED
from models.lora import read_config
from models.open_policy import open_policy, stamp
from models.policy import Policy
from rewards.answers import reasoning
from rewards.evaluation import text as render
from rewards.evaluation.predictions import Row, answered, drawn, kept_rows, scored_by
from rewards.evaluation.table import MEASURES, SAMPLES, TESTS, Answers, over_seeds, tabulate
from rewards.judges.judge_metrics import graded, open_graders
from rewards.scoring import RewardError

FAST = 240  # questions that the controls ask by default; of phantoms, exactly balanced
MODELS = ("base", "trained")
Examples = Sequence[VQAExample]
Ask = Callable[[Examples], list[Row]]


def predict(policy: Policy, config: Config, examples: Examples) -> list[Row]:
    """Each question answered greedily, and scored strictly and by forced choice."""
    answers = answer(policy, examples, config.max_completion_length, reasoning)
    return [answered(*pair) for pair in zip(examples, answers, strict=True)]


def sample(
    policy: Policy, config: Config, k: int, temperature: float, examples: Examples
) -> list[Row]:
    """Each question answered k times, drawn."""
    law = {"k": k, "temperature": temperature, "seed": config.seed}
    texts = samples(policy, examples, config.max_completion_length, **law)
    return [drawn(*pair) for pair in zip(examples, texts, strict=True)]


def measure(
    policy: Policy, options: Options, judges: Sequence[Any], tests: Tests, answers: Any, files: str
) -> dict[str, list[Row]]:
    """The figures of --metrics for each answered question, written to files with all reasons."""
    found = {}
    grade = partial(graded, names=options.measured, judges=judges)
    likelihood = partial(reference_nll, policy, batch_size=options.batch_size)
    for name, examples in tests.items():
        found[name] = by_all(grade, answers[name], examples)
        if "perplexity" in options.measured:
            losses = by_all(likelihood, examples)
            found[name] = [row | loss for row, loss in zip(found[name], losses, strict=True)]
        lines = "".join(json.dumps(row) + "\n" for row in found[name])
        if not rank():
            Path(f"{files}-{name}.jsonl").write_text(lines, encoding="utf-8")
    return found


def in_batches(policy: Policy, answers: Ask, batch_size: int, examples: Examples) -> Iterator[Row]:
    """The rows of all examples, each batch's as soon as they are there; a batch a process."""
    quiet = not examples or not sys.stderr.isatty()
    size = batch_size * world()
    with tqdm(total=len(examples), desc="scoring", leave=False, disable=quiet) as bar:
        for i in range(0, len(examples), size):
            policy.prefetch(share(examples[i : i + 2 * size]))  # this batch's images and the next's
            yield from by_all(answers, examples[i : i + size])
            bar.update(min(size, len(examples) - i))


def ask(
    policy: Policy,
    config: Config,
    tests: Tests,
    folder: Path,
    options: Options,
    models: Sequence[str] = MODELS,
    controls: Mapping[str, Tests] | None = None,
    judges: Sequence[Any] = (),
) -> Answers:
    """All answers of these models of one policy, kept in `folder`/predictions.

    A way of asking makes a model of its own in the table; all else goes with the first.
    """
    (first, *others) = options.ways or (config.prompt,)
    k, temperature, found = options.samples, options.temperature, {}
    for model in models:
        with policy.base() if model == "base" else nullcontext():
            keep = partial(_kept, policy, folder / "predictions", model, options)
            answers = partial(predict, policy, config)
            found[model] = {TESTS: keep(first, answers, tests)}
            if options.measured:
                files = f"{folder}/predictions/measures-{model}-{first}"
                rows = found[model][TESTS]
                found[model][MEASURES] = measure(policy, options, judges, tests, rows, files)
            if k:
                several = partial(sample, policy, config, k, temperature)
                found[model][SAMPLES] = keep(f"{first}-{k}-at-{temperature}", several, tests)
            for control, altered in (controls or {}).items():
                found[model][control] = keep(f"{first}-{control}", answers, altered)
            for way in others:
                asked = {m: asking.asked(tests[m], way) for m in tests}
                found[f"{model}, {way}"] = {TESTS: keep(way, answers, asked)}
    return found


def _kept(
    policy: Policy, folder: Path, model: str, options: Options, arm: str, answers: Ask, asked: Tests
) -> dict[str, list[Row]]:
    """The rows of one arm by modality, from its files in `folder` or answered now."""
    missing, kept = partial(in_batches, policy, answers, options.batch_size), {}
    for m, examples in asked.items():
        rows = kept_rows(folder / f"{model}-{m}-{arm}.jsonl", examples, missing, not rank())
        kept[m] = [scored_by(row, options.scorer) for row in rows]
    return kept


def subject(options: Options) -> tuple[Config, Path | None, Path]:
    """What is scored: its configuration, its adapter, and the folder for its answers."""
    given = options.given
    if not options.model:
        run = Path(options.run)
        config = with_names(replace(Config.load(run / "config.json"), **given))
        # Answers to questions of another data set are kept apart.
        place = run / "other" / config.data.replace("/", "_") if options.data else run
        return config, run / "adapter", place
    given |= {"model": options.model, "modality": options.modality or "MRI"}
    adapter = Path(options.adapter) if options.adapter else None
    if adapter:
        given["lora_r"], given["lora_alpha"] = read_config(adapter)
    recipe = "phantom" if options.model in SHIPPED else "medvlm-r1"
    config = with_names(Config(**{**RECIPES[recipe], "recipe": recipe, **given}))
    name = f"{Path(options.model).name}-{stamp(options.model, adapter, config.data)}"
    return config, adapter, Path("runs") / "models" / name


def rivals(options: Options, config: Config, tests: Tests) -> dict[str, tuple[Config, Path, Path]]:
    """The runs of --compare, as `subject` gives them, by the names of their rows.

    Raises UsageError for one that does not compare.
    """
    found = {}
    taken = {*MODELS, Path(options.run or "").resolve().name}
    for name in names_in(options.compare or ""):
        of = replace(options, run=name, model=None, adapter=None, modality=None, compare=None)
        other, adapter, folder = subject(of)
        asked = load_tests(other)
        differ = [m for m in tests if fingerprint(tests[m]) != fingerprint(asked.get(m))]
        label, problem = Path(name).resolve().name, ""
        if label in taken:
            problem = "a row of this name is there already; rename its folder"
        elif (other.model, other.prompt) != (config.model, config.prompt):
            problem = "another base or way of asking; score it alone, or with the same --prompt"
        elif differ:
            problem = f"other test questions of {', '.join(differ)}; give both the same --data, "
            problem += f"--ood and --eval-size, and train with --data-seed {config.data_seed}"
        if problem:
            raise UsageError(f"--compare {name}: {problem}")
        taken.add(label)
        found[label] = other, adapter, folder
    return found


def evaluate(
    options: Options, config: Config, adapter: Path | None, folder: Path
) -> dict[str, Any]:
    """The table of a model, its controls, and the runs beside it."""
    tests = load_tests(config)
    others = rivals(options, config, tests)
    controls, priors, coinciding = {}, {}, {}
    few = asking.few(tests, FAST if options.controls == "fast" else None)
    if options.controls != "none" and any(few.values()):  # they are for questions with options
        # A run learned from its own data, whatever it is asked now.
        learned = config if options.model else subject(replace(options, data=None))[0]
        controls, priors = asking.controls(few), asking.priors(asking.training(learned), tests)
        coinciding = asking.coinciding(few, controls["shuffled_image"])
    models, cache = MODELS if adapter else MODELS[:1], cache_folder(config.cache)
    judges = open_graders(options.measured, config.judge, config.judge_model, cache)
    policy = open_policy(config, adapter)
    answers = ask(policy, config, tests, folder, options, models, controls, judges)
    seeds, greedy = {config.seed: "trained"}, replace(options, samples=0)
    for label, (other, its_adapter, its_folder) in others.items():
        policy = open_policy(other, its_adapter)
        beside = ask(policy, other, tests, its_folder, greedy, ["trained"], judges=judges)
        answers |= {name.replace("trained", label, 1): arms for name, arms in beside.items()}
        if same_but_seed(config, other):
            seeds.setdefault(other.seed, label)
    table = tabulate(answers, config.modality, priors, coinciding)
    if len(seeds) > 1:
        table["seeds"] = over_seeds(table, list(seeds.values()))
    return table | {"scorer": options.scorer}


def ask_one(policy: Policy, config: Config, options: Options) -> str:
    """The reasoning, the answer and the probability of each letter for one question."""
    image = ImageFile(Path(options.image))
    example = VQAExample(options.image, (image,), options.question, options.choices, 0, "", "")
    way = "direct" if config.prompt == "direct" else "reason"  # the options are to be seen
    return render.one(*predict(policy, config, asking.asked([example], way)))


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Raises UsageError and RewardError for all that a user can mend."""
    about = "Score a run's base and trained policy on seen and unseen modalities."
    with processes():
        options = Options(**parse_flags(Options, argv, "evaluate.py", about))
        if not (options.run or options.model):
            options = replace(options, run=str(newest_run()))  # once: another may finish meanwhile
        if rank() and (options.export_merged or options.image):
            return  # work for one
        config, adapter, folder = subject(options)
        if options.export_merged:
            refuse_taken(Path(options.export_merged))
            largest = export_merged(open_policy(config, adapter), Path(options.export_merged))
            print(f"wrote {options.export_merged}; no logit differs by more than {largest:.1e}")
        elif options.image:
            print(ask_one(open_policy(config, adapter), config, options))
        else:
            report(options, config, folder, evaluate(options, config, adapter, folder))


def report(options: Options, config: Config, folder: Path, table: dict[str, Any]) -> None:
    """Print the table, and write it down."""
    print(f"{folder}: {config.model} on {config.data}, trained on {config.modality}, greedy")
    drawn_data = config.data.startswith("phantom")
    print(render.text(table) + "\nPhantoms are drawn, not medical data." * drawn_data)
    if not rank():
        write_json(Path(options.json or folder / "evaluation.json"), table)
    if options.markdown and not rank():
        Path(options.markdown).write_text(render.markdown(table), encoding="utf-8")


if __name__ == "__main__":
    with exit_on_usage_error("evaluate.py", RewardError):
        main()

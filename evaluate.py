"""Score a run: base and trained policy, on the modality it was trained on and on unseen ones.

    python evaluate.py --ood CT,XRAY            the newest run
    python evaluate.py --run runs/NAME --controls full --markdown table.md
    python evaluate.py --image scan.png --question "Which side?" --options "left;right"

Answers are greedy. `predictions/` in the run folder keeps every one of them, so nothing is asked
twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tqdm import tqdm

from data import asking
from data.asking import Tests, load_tests, with_names
from data.example import ImageFile, VQAExample
from grpo.config import Config, UsageError, exit_on_usage_error
from grpo.flags import names_in, parse_flags
from grpo.options import Options
from grpo.recipes import RECIPES
from grpo.run import newest_run
from models.answering import answer, samples
from models.export import export_merged
from models.opening import open_policy
from models.policy import Policy
from rewards import render
from rewards.parse import reasoning
from rewards.rows import Row, answered, drawn, kept_rows, scored_by
from rewards.table import SAMPLES, TESTS, Answers, over_seeds, tabulate

FAST = 240  # questions that the controls ask by default; of phantoms, exactly balanced
MODELS = ("base", "trained")


def predict(policy: Policy, config: Config, examples: Sequence[VQAExample]) -> list[Row]:
    """Each question answered greedily, and scored strictly and by forced choice."""
    answers = answer(policy, examples, config.max_completion_length, reasoning)
    return [answered(*pair) for pair in zip(examples, answers, strict=True)]


def sample(
    policy: Policy, config: Config, k: int, temperature: float, examples: Sequence[VQAExample]
) -> list[Row]:
    """Each question answered k times, drawn."""
    law = {"k": k, "temperature": temperature, "seed": config.seed}
    texts = samples(policy, examples, config.max_completion_length, **law)
    return [drawn(*pair) for pair in zip(examples, texts, strict=True)]


def in_batches(
    answers: Callable[[Sequence[VQAExample]], list[Row]],
    batch_size: int,
    examples: Sequence[VQAExample],
) -> Iterator[Row]:
    """The rows of all examples, each batch's as soon as they are there."""
    quiet = not examples or not sys.stderr.isatty()
    with tqdm(total=len(examples), desc="scoring", leave=False, disable=quiet) as bar:
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            yield from answers(batch)
            bar.update(len(batch))


def ask(
    policy: Policy,
    config: Config,
    tests: Tests,
    folder: Path,
    options: Options,
    models: Sequence[str] = MODELS,
    controls: Mapping[str, Tests] = MappingProxyType({}),
) -> Answers:
    """All answers of these models of one policy, kept in `folder`/predictions.

    A way of asking makes a model of its own in the table; samples and controls go with the first.
    """
    (first, *others) = options.ways or (config.prompt,)
    k, temperature = options.samples, options.temperature
    found: Answers = {}
    for model in models:
        with policy.base() if model == "base" else nullcontext():
            keep = partial(_kept, folder / "predictions", model, options)
            answers = partial(predict, policy, config)
            found[model] = {TESTS: keep(first, answers, tests)}
            if k:
                several = partial(sample, policy, config, k, temperature)
                found[model][SAMPLES] = keep(f"{first}-{k}-at-{temperature}", several, tests)
            for control, altered in controls.items():
                found[model][control] = keep(f"{first}-{control}", answers, altered)
            for way in others:
                asked = {m: asking.asked(tests[m], way) for m in tests}
                found[f"{model}, {way}"] = {TESTS: keep(way, answers, asked)}
    return found


def _kept(
    folder: Path,
    model: str,
    options: Options,
    arm: str,
    answers: Callable[[Sequence[VQAExample]], list[Row]],
    asked: Tests,
) -> dict[str, list[Row]]:
    """The rows of one arm by modality, from its files in `folder` or answered now."""
    predict_missing = partial(in_batches, answers, options.batch_size)
    kept = {
        m: kept_rows(folder / f"{model}-{m}-{arm}.jsonl", examples, predict_missing)
        for m, examples in asked.items()
    }
    return {m: [scored_by(row, options.scorer) for row in rows] for m, rows in kept.items()}


def subject(options: Options) -> tuple[Config, Path | None, Path]:
    """What is scored: its configuration, its adapter, and the folder for its answers."""
    names = ("data", "ood", "eval_size", "device", "threads", "cache")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.ways:
        given["prompt"] = options.ways[0]
    if options.model:
        given |= {"model": options.model, "modality": options.modality or "MRI"}
        recipe = "phantom" if options.model == "phantom" else "medvlm-r1"
        config = with_names(Config(**{**RECIPES[recipe], "recipe": recipe, **given}))
        adapter = Path(options.adapter) if options.adapter else None
        name = f"{Path(options.model).name}-{stamp(options.model, options.adapter, config.data)}"
        return config, adapter, Path("runs") / "models" / name
    run = Path(options.run) if options.run else newest_run()
    config = with_names(replace(Config.load(run / "config.json"), **given))
    # Answers to questions of another data set are kept apart, should two have the same ids.
    apart = run / "other" / config.data.replace("/", "_") if options.data else run
    return config, run / "adapter", apart


def stamp(*names: str | None) -> str:
    """A short hash of names and, where they are folders, of the weights that lie there now."""
    files = [f for name in names if name for f in sorted(Path(name).glob("*.safetensors"))]
    weights = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr((names, weights)).encode()).hexdigest()[:8]


def compared(options: Options, config: Config, tests: Tests) -> tuple[Answers, list[str]]:
    """The answers of --compare's runs, and which of them differ from this one in the seed alone.

    Raises UsageError where a run has other test questions.
    """
    found: Answers = {}
    seeds = []
    for name in names_in(options.compare or "none"):
        theirs = replace(options, run=name, model=None, adapter=None, compare=None, samples=0)
        other, adapter, folder = subject(theirs)
        asked = load_tests(other)
        differ = [
            m for m in tests if asking.fingerprint(tests[m]) != asking.fingerprint(asked.get(m))
        ]
        if differ:
            problem = f"other test questions of {', '.join(differ)} than {config.data}'s here"
            remedy = (
                f"give both the same --data, --ood, --eval-size, and --data-seed {config.data_seed}"
            )
            raise UsageError(f"--compare {name}: {problem}; {remedy}")
        answers = ask(open_policy(other, adapter), other, tests, folder, theirs, ["trained"])
        label = Path(name).name
        found |= {model.replace("trained", label): arms for model, arms in answers.items()}
        if replace(other, seed=config.seed, out=config.out) == config:
            seeds.append(label)
    return found, seeds


def ask_one(policy: Policy, config: Config, options: Options) -> str:
    """The reasoning, the answer and the probability of each letter for one question."""
    choices = tuple(text.strip() for text in options.options.split(";") if text.strip())
    if not 2 <= len(choices) <= 26:
        raise UsageError(f'--options {options.options}: give 2 to 26, as in "left;right"')
    image = ImageFile(Path(options.image))
    example = VQAExample(options.image, (image,), options.question, choices, 0, "", "")
    (row,) = predict(policy, config, asking.asked([example], config.prompt))
    named = dict(zip(example.letters, choices, strict=True))
    answer = row["answer"] or row["forced_answer"]
    unsure = "" if row["answer"] else " (no answer in the format; this is the likeliest)"
    lines = [
        f"reasoning  {row['forced_reasoning'] or '-'}",
        f"answer     {answer}) {named[answer]}",
    ]
    lines[-1] += unsure
    for (letter, text), logprob in zip(named.items(), row["letter_logprobs"], strict=True):
        lines.append(f"  {100 * math.exp(logprob):5.1f} %  {letter}) {text}")
    return "\n".join([*lines, "Not for clinical use."])


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Raises UsageError for all that a user can mend."""
    try:
        evaluate(argv)
    except OSError as error:  # answers are written all along
        raise UsageError(f"{error.filename}: {error.strerror}; make room there") from None


def evaluate(argv: Sequence[str] | None) -> None:
    """One of three: a model to export, a question to answer, a table to print."""
    about = "Score a run's base and trained policy on seen and unseen modalities."
    options = Options(**parse_flags(Options, argv, "evaluate.py", about))
    config, adapter, folder = subject(options)
    if options.export_merged:
        largest = export_merged(open_policy(config, adapter), Path(options.export_merged))
        print(f"{options.export_merged}: merged; no logit differs by more than {largest:.1e}")
        return
    if options.image:
        print(ask_one(open_policy(config, adapter), config, options))
        return
    tests = load_tests(config)
    few, controls, priors = {}, {}, {}
    if options.controls != "none":
        few = asking.few(tests, FAST if options.controls == "fast" else None)
        controls, priors = asking.controls(few), asking.priors(asking.training(config), tests)
    models = MODELS if adapter else MODELS[:1]
    policy = open_policy(config, adapter)
    answers = ask(policy, config, tests, folder, options, models, controls)
    others, seeds = compared(options, config, tests)
    answers |= others
    table = tabulate(answers, config.modality, priors, asking.coinciding(few))
    if seeds:
        table["seeds"] = over_seeds(table, ["trained", *seeds])
    print(f"{folder}: {config.model} on {config.data}, trained on {config.modality}, greedy")
    print(render.text(table))
    if config.data.startswith("phantom"):
        print("Phantoms are drawn, not medical data.")
    if options.json:
        Path(options.json).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        Path(options.markdown).write_text(render.markdown(table), encoding="utf-8")


if __name__ == "__main__":
    with exit_on_usage_error("evaluate.py"):
        main()

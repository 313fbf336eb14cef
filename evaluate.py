"""Score a run: base and trained policy, on the modality it was trained on and on unseen ones.

    python evaluate.py [--run runs/NAME] --ood CT,XRAY            the newest run, or the one named

Answers are greedy. `predictions/` in the run folder keeps every one, so no question is asked twice.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.evaluation_questions import Tests, control_questions, in_split, load_tests, say_left_out
from data.example import VQAExample, columns, in_all_ways, sliced, users_question
from data.load import LeftOut, Refusal, fingerprint, is_drawn, with_names
from grpo.distributed import by_all, gathered, processes, rank
from grpo.report.checklist import checklist
from grpo.run.atomic import write_whole
from grpo.run.folder import lock, newest_run, row_name, same_but_seed, write_table
from grpo.run.terminal import in_batches
from grpo.settings.config import Config, cache_folder
from grpo.settings.errors import UsageError, exit_on_usage_error
from grpo.settings.flags import names_in, parse_flags
from grpo.settings.options import Options
from models.answering import answer, choices_after, reference_nll, samples
from models.export import export_merged, refuse_taken
from models.open_policy import open_policy, refusal, scored_policy
from models.policy import Policy
from rewards.answers import reasoning
from rewards.evaluation import predictions, text
from rewards.evaluation.predictions import Row, answered, drawn, kept_rows, scored_by, write_rows
from rewards.evaluation.reliance import altered_thoughts, stays
from rewards.evaluation.scores import cell
from rewards.evaluation.table import MEASURES, SAMPLES, TESTS, Answers, tabulate
from rewards.judges.judge import open_judges
from rewards.judges.judge_rewards import graded, open_graders, reward_terms
from rewards.scoring import RewardError

FAST = 240  # questions that the controls ask by default; of phantoms, exactly balanced
MODELS = ("base", "trained")
NEVER_READ = ' Their model has never read "None of the above".'
Examples = Sequence[VQAExample]
Controls = Mapping[str, Tests]  # control -> its questions by modality
Respond = Callable[[Examples], list[Row]]  # a policy's answers to a batch of questions


def validate(policy: Policy, validation: Tests, config: Config) -> dict[str, float]:
    """Greedy scores on the validation questions, as val/accuracy; of unseen CT, val/CT/accuracy."""
    start, found = time.perf_counter(), {}
    scorer = Scorer(policy, config, Options(), Path())
    for modality, examples in validation.items():
        size = scorer.options.batch_size
        scores = cell(list(in_batches(scorer.predict, examples, size, policy.prefetch)))
        place = "val" if modality == config.modality else f"val/{modality}"
        names = ("accuracy", "format_rate", "forced_choice")  # the last: None if all are open
        found |= {f"{place}/{name}": scores[name] for name in names if scores[name] is not None}
    return found | {"time/validation": time.perf_counter() - start}


def score_run(policy: Policy, config: Config, tests: Tests, run: Path) -> dict[str, Any]:
    """The table of base and trained policy on the tests; {} without any. `run` keeps answers."""
    scorer = Scorer(policy, config, Options(), run)
    return tabulate(scorer.ask(tests), config.modality) if tests else {}


@dataclass(frozen=True)
class Scorer:
    """A policy that is asked questions, and `folder`/predictions, which keeps its answers."""

    policy: Policy
    config: Config
    options: Options
    folder: Path
    judges: Mapping[str, Any] | None = None  # of --metrics

    def ask(
        self, tests: Tests, models: Sequence[str] = MODELS, controls: Controls | None = None
    ) -> Answers:
        """All answers of `models`. A further way of asking is a model of its own in the table;
        controls, samples and figures use the first."""
        lock(self.folder, "evaluate")
        (first, *others) = self.options.ways or (self.config.prompt,)
        k, temperature, found = self.options.samples, self.options.temperature, {}
        for model in models:
            with self.policy.base() if model == "base" else nullcontext():
                rows = self.kept(model, first, self.predict, tests)
                found[model] = {TESTS: rows}
                if self.options.measured:
                    file = f"{self.folder}/predictions/measures-{model}-{first}"
                    found[model][MEASURES] = self.measure(tests, rows, file)
                if k:
                    arm = f"{first}-{k}-at-{temperature}"
                    found[model][SAMPLES] = self.kept(model, arm, self.sample, tests)
                for control, altered in (controls or {}).items():
                    arm = f"{first}-{control}"
                    found[model][control] = self.kept(model, arm, self.predict, altered)
                for way in others:
                    asked = {m: in_all_ways(tests[m], [way]) for m in tests}
                    found[f"{model}, {way}"] = {TESTS: self.kept(model, way, self.predict, asked)}
        return found

    def kept(self, model: str, arm: str, respond: Respond, asked: Tests) -> dict[str, list[Row]]:
        """The rows of one arm by modality: read from its files, or answered now and added there."""
        found, batch = {}, {"size": self.options.batch_size, "prefetch": self.policy.prefetch}
        for modality, examples in asked.items():
            file = self.folder / "predictions" / f"{model}-{modality}-{arm}.jsonl"
            rows = kept_rows(file, examples, partial(in_batches, respond, **batch), not rank())
            found[modality] = [scored_by(row, self.options.scorer) for row in rows]
        return found

    def predict(self, examples: Examples) -> list[Row]:
        """Each question answered greedily, and scored strictly and by forced choice."""
        answers = answer(self.policy, examples, self.config.max_completion_length, reasoning)
        return [answered(*pair) for pair in zip(examples, answers, strict=True)]

    def sample(self, examples: Examples) -> list[Row]:
        """Each question answered --samples times, drawn."""
        settings = {"k": self.options.samples, "temperature": self.options.temperature}
        longest, seed = self.config.max_completion_length, self.config.seed
        texts = samples(self.policy, examples, longest, seed=seed, **settings)
        return [drawn(*pair) for pair in zip(examples, texts, strict=True)]

    def measure(self, tests: Tests, answers: Any, file: str) -> Any:
        """The figures of --metrics for each answer; a file a modality keeps them with reasons."""
        grade, found = partial(graded, judges=self.judges or {}), {}
        likelihood = partial(reference_nll, self.policy, batch_size=self.options.batch_size)
        choose = partial(choices_after, self.policy, batch_size=self.options.batch_size)
        for modality, examples in tests.items():
            said = answers[modality]
            rows = by_all(grade, said, examples)
            if "perplexity" in self.options.measured:
                rows = list(map(dict.__or__, rows, by_all(likelihood, examples)))
            if "faithfulness" in self.options.measured:
                for name, thoughts in altered_thoughts(said).items():
                    choices = by_all(choose, examples, thoughts)
                    rows = list(map(partial(stays, name), rows, said, thoughts, choices))
            if not rank():
                write_rows(Path(f"{file}-{modality}.jsonl"), rows)
            found[modality] = rows
        return found


def rivals(
    options: Options, config: Config, tests: Tests, refused: Refusal
) -> dict[str, tuple[Config, Path, Path]]:
    """The runs of --compare by the names of their rows. Raises UsageError for one that differs;
    `refused` is this run's, so a run of another model is refused."""
    found, own = {}, Path(options.run or "").resolve().name
    for name in names_in(options.compare or ""):
        named = replace(options, run=name, model=None, adapter=None, modality=None, compare=None)
        other, adapter, folder = scored_policy(named)
        asked = load_tests(other := with_names(other), LeftOut(refused))
        differ = [m for m in tests if fingerprint(tests[m]) != fingerprint(asked.get(m))]
        label = row_name(name, (*MODELS, own, *found), config, other, differ)
        found[label] = other, adapter, folder
    return found


def evaluate(options: Options, config: Config, adapter: Path | None, folder: Path) -> Any:
    """The table of a model, its controls, and the runs beside it."""
    skipped = LeftOut(refusal(config))
    tests = load_tests(config, skipped)
    others = rivals(options, config, tests, skipped.refused)
    own = config if options.model else scored_policy(replace(options, data=None))[0]
    most = FAST if options.controls == "fast" else None
    controlled = {} if options.controls == "none" else tests
    models, cache = MODELS if adapter else MODELS[:1], cache_folder(config.cache)
    judges = open_graders(options.measured, config.judge, config.judge_model, cache)
    policy = open_policy(config, adapter)
    pooled = partial(by_all, lambda asked: [policy.vision.pooled(e.images) for e in asked])
    controls, priors, oracle = control_questions(controlled, most, own, config, skipped, pooled)
    left_out = say_left_out("evaluate.py", skipped) if skipped else ""
    answers = Scorer(policy, config, options, folder, judges).ask(tests, models, controls)
    seeds, greedy = {config.seed: "trained"}, replace(options, samples=0)
    for label, (other, its_adapter, its_folder) in others.items():
        del policy  # two large models need not be held at once
        policy = open_policy(other, its_adapter)
        beside = Scorer(policy, other, greedy, its_folder, judges).ask(tests, ["trained"])
        answers |= {name.replace("trained", label, 1): arms for name, arms in beside.items()}
        if same_but_seed(config, other):
            seeds.setdefault(other.seed, label)
    facts = {"scorer": options.scorer, "temperature": options.temperature, "prompt": config.prompt}
    table = tabulate(answers, config.modality, priors, oracle, list(seeds.values()))
    return table | facts | {"left_out": left_out}


def pass_rates(options: Options, config: Config, adapter: Path | None, folder: Path) -> str:
    """Write how often the base is right on each question of --split; what GRPO would see there."""
    judges = open_judges(config.judge, config.judge_model, cache_folder(config.cache))
    terms = reward_terms(config, judges)
    if "overlong" in {term.partition("=")[0].strip() for term in config.reward.split(",")}:
        raise UsageError(f"--reward {config.reward}: overlong needs token counts; leave it out")
    examples = in_split(config, options.split, options.eval_size, LeftOut(refusal(config)))
    scorer = Scorer(open_policy(config, adapter), config, options, folder)
    name = f"{config.modality}-{options.split}"
    arms = scorer.ask({name: examples}, MODELS[:1])["base"]
    rows = predictions.pass_rates(arms[SAMPLES][name], examples, terms, columns)
    if not rank():
        write_rows(Path(options.pass_rates), rows)
    forced = cell(arms[TESTS][name])["forced_choice"]
    return f"{options.pass_rates}: {text.signal(rows, forced, config.reward)}"


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Raises UsageError and RewardError for all that a user can mend."""
    about = "Score a run's base and trained policy on seen and unseen modalities."
    with processes():
        options = Options(**parse_flags(Options, argv, "evaluate.py", about))
        if not (options.run or options.model):
            # Once, by one process: another run may finish meanwhile.
            options = replace(options, run=gathered(None if rank() else str(newest_run()))[0])
        if rank() and (options.export_merged or options.image or options.checklist):
            return  # work for one
        config, adapter, folder = scored_policy(options)
        config = with_names(config)
        if options.export_merged:
            refuse_taken(Path(options.export_merged))
            largest = export_merged(open_policy(config, adapter), Path(options.export_merged))
            print(f"wrote {options.export_merged}; no logit differs by more than {largest:.1e}")
        elif options.checklist:
            print("\n\n".join(map("\n   ".join, checklist(folder))))
        elif options.pass_rates:
            print(pass_rates(options, config, adapter, folder))
        elif options.image:
            own = users_question(options.image, options.question, options.choices, config.prompt)
            scorer = Scorer(open_policy(config, adapter), config, options, folder)
            print(text.one(*scorer.predict([sliced(own, config.slices)])))
        else:
            report(options, config, folder, evaluate(options, config, adapter, folder))


def report(options: Options, config: Config, folder: Path, table: dict[str, Any]) -> None:
    """Write the table down, then print it."""
    if not rank():
        write_table(folder, Path(options.json or folder / "evaluation.json"), table)
        if options.markdown:
            write_whole(Path(options.markdown), text.markdown(table).encode())
    controls = ["on permuted answers"] * config.shuffle_answers + ["without images"] * config.blind
    how = f"greedy, a control: trained {' and '.join(controls)}" if controls else "greedy"
    print(f"{folder}: {config.model} on {config.data}, trained on {config.modality}, {how}")
    note = "\nPhantoms are drawn, not medical data." * is_drawn(config.data)
    print(text.text(table) + note + NEVER_READ * bool(note and options.controls == "full"))


if __name__ == "__main__":
    with exit_on_usage_error("evaluate.py", RewardError):
        main()

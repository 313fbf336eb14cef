"""The flags of evaluate.py, and those of train.py that are no settings of a run."""

import argparse
import dataclasses
import functools
import re
import typing
from collections.abc import Sequence
from typing import Any, Literal

from grpo.settings.config import Dtype, Switch, Way
from grpo.settings.errors import UsageError
from grpo.settings.flags import check_file, check_names, check_options, flag, names_in, option

_what = functools.partial(option, "what is scored")
_how = functools.partial(option, "how it is asked")
_one = functools.partial(option, "one question about one picture")
_out = functools.partial(option, "output")
_run = functools.partial(option, "machine")
METRICS = ("perplexity", "reasoning", "correctness", "similarity", "faithfulness")
UNITS = {"mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30}  # of --memory-limit
AS_RUN = "run"  # the run's own value, for the settings to which "none" is a value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of evaluate.py. A setting of the run that is None here keeps the run's value.

    Raises UsageError for a bad value, and for options that exclude or need each other.
    """

    run: str | None = _what(None, "Run folder (none: the newest under runs/).")
    model: str | None = _what(None, "A model in place of a run: hub id, folder or phantom.")
    adapter: str | None = _what(None, "Of --model: the adapter folder to score beside it.")
    compare: str | None = _what(None, "More runs, RUN,RUN: rows beside this one's.")
    data: str | None = _what(None, "Another data set, such as phantom:new-kind.")
    modality: str | None = _what(None, "Of --model: what counts as in distribution.")
    slices: int | None = _what(None, "Slices of a volume, each an image.", ge=1, lt=17)
    ood: str = _what(AS_RUN, "Unseen modalities to score, or none.")
    eval_size: int | None = _what(None, "Test questions of each modality.", ge=1)

    prompt: str | None = _how(None, "Ways of asking: reason, explain, direct, open; a comma list.")
    controls: Literal["none", "fast", "full"] = _how("fast", "240 questions; full: all, and more.")
    samples: int = _how(0, "Also draw this many answers to each question, for pass@k (K).", ge=0)
    temperature: float = _how(1.0, "Temperature of these samples (T).", gt=0)
    pass_rates: str | None = _how(None, "Only ask the base, and write its pass rates to this file.")
    split: Literal["train", "val", "test"] = _how("train", "Whose questions --pass-rates asks.")
    reward: str | None = _how(None, "Rewards that --pass-rates counts with (none: the run's).")
    metrics: str = _how("none", "More figures: " + ", ".join(METRICS) + "; a comma list, or all.")
    judge: str | None = _how(None, "Their judges: URL, hf:FOLDER, embed:FOLDER; a comma list.")
    judge_model: str | None = _how(None, "The model that a --judge URL serves.")
    scorer: Literal["ours", "medvlm-r1"] = _how("ours", "Or the parser of its published figures.")

    image: str | None = _one(None, "Ask about this image: PNG, JPEG, DICOM, NIfTI.")
    question: str | None = _one(None, "The question.")
    options: str | None = _one(None, 'Its options, as "left;right".')

    json: str | None = _out(None, "File of the table (none: evaluation.json in the run).")
    markdown: str | None = _out(None, "Also write it to this file, as Markdown.")
    checklist: bool = _out(False, "Only print what a report on a run must state (MI-CLEAR-LLM).")
    export_merged: str | None = _out(None, "Only write base and adapter, as one model, there.")

    batch_size: int = _run(64, "Questions answered together.", ge=1)
    device: str | None = _run(None, "auto, cpu, cuda or cuda:N.")
    threads: int | None = _run(None, "CPU threads; 0 for torch's own choice.", ge=0)
    cuda_graphs: Literal["run", Switch] = _run(AS_RUN, "Replay recorded decoding steps.")
    cache: str = _run(AS_RUN, "Folder for image features; auto or none.")
    dtype: Literal["run", Dtype] = _run(AS_RUN, "Of the base model; an export has this dtype.")

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("json", "markdown", "pass_rates"):
            check_file(flag(name), getattr(self, name))
        check_names("prompt", self.ways, typing.get_args(Way))
        check_names("metrics", self.measured, METRICS)
        if "open" in self.ways[:-1]:  # it hides the options that the later ways show
            raise UsageError(f"--prompt {self.prompt}: put open last")
        one = (self.image, self.question, self.options)
        if any(one) and not all(one):
            raise UsageError("--image, --question and --options go together; give all three")
        if self.pass_rates and self.samples < 8:
            raise UsageError(f"--samples {self.samples}: --pass-rates needs 8 or more; use 16")
        for name in ("adapter", "modality"):
            if (value := getattr(self, name)) and not self.model:
                raise UsageError(f"{flag(name)} {value}: a run has its own; it goes with --model")
        names = ("image", "export_merged", "pass_rates", "checklist")
        if len(alone := [flag(name) for name in names if getattr(self, name)]) > 1:
            raise UsageError(f"{' and '.join(alone)}: one at a time")
        if self.model and self.run:
            raise UsageError("--run and --model: a run has its model; give one of them")

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways of asking, the first one first; () for the run's own."""
        return names_in(self.prompt or "")

    @property
    def measured(self) -> tuple[str, ...]:
        """The figures that --metrics names."""
        return METRICS if self.metrics == "all" else names_in(self.metrics)

    @property
    def choices(self) -> tuple[str, ...]:
        """The options that --options lists. Raises UsageError if there are not 2 to 26."""
        texts = tuple(text.strip() for text in (self.options or "").split(";") if text.strip())
        if not 2 <= len(texts) <= 26:
            raise UsageError(f'--options {self.options}: give 2 to 26, as in "left;right"')
        return texts

    @property
    def given(self) -> dict[str, Any]:
        """The settings of the run that were given here and so replace the run's own."""
        names = ("data", "ood", "eval_size", "device", "threads", "cache", "dtype", "cuda_graphs")
        names += ("judge", "judge_model", "slices", "reward")
        values = {name: getattr(self, name) for name in names}
        values["prompt"] = self.ways[0] if self.ways else None
        return {name: value for name, value in values.items() if value not in (None, AS_RUN)}


def program_flags(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags of train.py that are no settings of a run, as --dry-run, and the other words.
    Raises UsageError.

    >>> program_flags(["--dry-run", "--steps", "1", "--memory-limit", "40GB"])
    (Namespace(explain=False, page=None, dry_run=True, memory_limit=40000000000), ['--steps', '1'])
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--explain", action="store_true")
    parser.add_argument("--page", nargs="?", const="")
    parser.add_argument("--dry-run", "--dry_run", action="store_true")
    parser.add_argument("--memory-limit", "--memory_limit", nargs="?", const="")
    found, rest = parser.parse_known_args(words)
    if found.memory_limit is not None:
        found.memory_limit = read_limit(found.memory_limit)
    if found.page is not None and not (found.page and found.explain):
        raise UsageError("--page: needs --explain and a file, as --explain --page group.html")
    check_file("--page", found.page)
    return found, rest


def read_limit(text: str) -> int:
    """Bytes of 40GB (10^9 bytes each), 40GiB (2^30), 24000MB or MiB. Raises UsageError.

    >>> read_limit("1.5GB"), read_limit("1 mib")
    (1500000000, 1048576)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text.strip(), re.ASCII | re.IGNORECASE)
    if found and (size := int(float(found[1]) * UNITS[found[2].lower()])):
        return size
    wanted = "expected an amount and its unit, such as 40GB, 40GiB or 24000MB"
    raise UsageError(f"{f'--memory-limit {text}'.rstrip()}: {wanted}")

"""Measure what a data set gives away without its images, before training. No model is needed.

    python -m data.audit omnimedvqa:FOLDER
    python -m data.audit phantom:leaky --train-size 2400 --eval-size 1200 --json audit.json

Counts are of all questions that have a split (of phantoms, which have no end, of those drawn). The
priors learn from the training questions that a run of these sizes and this seed draws, and answer
its test questions. Open questions, which have no options, are left out of them.
"""

import dataclasses
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any, get_args

from data.audit.table import render
from data.controls.priors import Prior, by_letter, by_text
from data.example import VQAExample
from data.images import ImageSource
from data.load import LeftOut, is_drawn, learned_from, load, modalities, read, splits_of
from data.near_copies import near_copies
from data.rows import modality_name, summary
from data.splits import Split, constant_answers, copies, has_constant_answer
from grpo.settings.errors import UsageError
from grpo.settings.flags import check_file, check_options, names_in, option, parse_flags

PROG = "python -m data.audit"
Questions = Sequence[VQAExample]
Parts = dict[Split, list[VQAExample]]  # the questions of one modality


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The flags. Sizes and seed default to those of train.py."""

    modality: str | None = option("what", None, "Comma list of modalities (none: all).")
    train_size: int = option("what", 600, "Training questions of a modality to learn from.", ge=1)
    eval_size: int = option("what", 300, "Its test questions to answer.", ge=1)
    seed: int = option("what", 42, "Seed of the splits and of the draws.", ge=0, lt=2**31)
    json: str | None = option("output", None, "Also write the figures to this file.")

    def __post_init__(self) -> None:
        check_options(self)
        check_file("--json", self.json)


def audit(spec: str, options: Options) -> dict[str, Any]:
    """All figures, ready for JSON, by modality where they have one. Accuracies lie in [0, 1]."""
    names = chosen_modalities(spec, options.modality)
    skipped = LeftOut()
    whole, drawn = questions(spec, names, options, skipped)
    every = {name: list(chain(*whole[name].values())) for name in names}
    train = {name: drawn[name]["train"] for name in names}
    test = {name: drawn[name]["test"] for name in names}
    priors = {name: Prior(by_text, train[name]) for name in names}
    learned = {m: {name: priors[m].score(test[name]) for name in names} for m in names}
    return {
        "data": spec,
        "seed": options.seed,
        "counts": {name: counts(whole[name]) for name in names},
        "letters": {name: letters(every[name]) for name in names},
        "full_stops": {name: full_stops(every[name]) for name in names},
        "trained_on": {name: len(train[name]) for name in names},
        "majority_letter": {m: Prior(by_letter, train[m]).score(test[m]) for m in names},
        "options_prior": learned[names[0]],
        "options_prior_from": learned,
        "constant": {name: constant(every[name], test[name], priors[name]) for name in names},
        **shared_images(whole.values(), compare=not is_drawn(spec)),
        "left_out": summary(skipped),
        "unusable": dict(Counter(item.reason for item in sorted(skipped)).most_common()),
    }


def chosen_modalities(spec: str, asked: str | None) -> list[str]:
    """The modalities to audit. Raises UsageError for one that the data set does not have."""
    there = modalities(spec)
    names = [modality_name(name) or name for name in names_in(asked)] if asked else list(there)
    for name in names or [str(asked)]:
        if name not in there:
            raise UsageError(f"--modality {name}: {spec} has {', '.join(there)}; use these")
    return names


def questions(
    spec: str, names: Sequence[str], options: Options, skipped: LeftOut
) -> tuple[dict[str, Parts], dict[str, Parts]]:
    """By modality: all questions, and those that a run draws.

    Only the images of the latter are opened. What is left out is added to `skipped`.
    """
    drawn = {name: Parts(train=[], val=[], test=[]) for name in names}
    whole = drawn if is_drawn(spec) else deepcopy(drawn)
    if not is_drawn(spec):
        splits = splits_of(spec, options.seed)
        for example in read(spec).examples:
            if example.modality in whole and splits[example.id]:
                whole[example.modality][splits[example.id]].append(example)
    draw = partial(load, seed=options.seed, skipped=skipped)
    for name, split in product(names, get_args(Split) if is_drawn(spec) else ("train", "test")):
        size = options.train_size if split == "train" else options.eval_size
        if is_drawn(spec) or whole[name][split]:  # `load` takes an empty split for an error
            source = learned_from(spec) if split == "train" else spec
            drawn[name][split] = draw(source, name, split=split, size=size)
    return whole, drawn


def counts(parts: Parts) -> dict[str, Any]:
    """How many questions and images; questions by split, by number of options and by type."""
    every = list(chain(*parts.values()))
    return {
        "questions": len(every),
        "images": len({image.key for example in every for image in example.images}),
        "splits": {split: len(examples) for split, examples in parts.items()},
        "options": {str(n): k for n, k in sorted(Counter(len(e.options) for e in every).items())},
        "types": dict(sorted(Counter(e.question_type or "no type" for e in every).items())),
    }


def letters(examples: Questions) -> dict[str, dict[str, int]]:
    """By number of options, if any: how often each letter is right."""
    found: dict[str, dict[str, int]] = {}
    lettered = (example for example in examples if example.options)
    for example in sorted(lettered, key=lambda example: len(example.options)):
        count = found.setdefault(str(len(example.options)), dict.fromkeys(example.letters, 0))
        count[example.letter] += 1
    return found


def full_stops(examples: Questions) -> dict[str, int]:
    """Questions with a full stop behind just one option, and of how many that option is right."""
    marks = [[text.endswith(".") for text in example.options] for example in examples]
    right = [mark[e.gold] for e, mark in zip(examples, marks, strict=True) if sum(mark) == 1]
    return {"questions": len(right), "right": sum(right)}


def constant(every: Questions, test: Questions, prior: Prior) -> dict[str, Any]:
    """The types and questions whose answer never changes; `n` test questions are among them.

    `rest` is what the options-only prior does on the others.
    """
    known = constant_answers(every)
    rest = [example for example in test if not has_constant_answer(example, known)]
    return {
        "answers": [[kind, name, answer] for (kind, name), answer in sorted(known.items())],
        "n": len(test) - len(rest),
        "rest": prior.score(rest),
    }


def shared_images(whole: Iterable[Parts], compare: bool) -> dict[str, dict[str, Any]]:
    """Images in more than one split, by path and by bytes, and those that lie under several paths.

    An image of a parquet file has its row for a path. The key of a drawn one stands for its bytes.
    With `compare`, `near` of `leaks` lists the near copies (data/near_copies.py) that lie in two
    splits, and that of `copies` counts all of them.
    """
    found: dict[str, set[Split]] = defaultdict(set)  # key -> splits
    images: list[ImageSource] = []
    for split, examples in chain(*(parts.items() for parts in whole)):
        for image in chain(*(example.images for example in examples)):
            found[image.key].add(split)
            images.append(image)
    equal = copies(images)
    same = equal + [[path] for path in found.keys() - set(chain(*equal))]
    by_bytes = [set().union(*(found[path] for path in paths)) for paths in same]
    crossing = {"path": found.values(), "hash": by_bytes}
    leaks = {name: sum(len(splits) > 1 for splits in sets) for name, sets in crossing.items()}
    near = near_copies({image.key: image for image in images}.values()) if compare else []
    return {
        "leaks": {**leaks, "near": [p for p in near if len(found[p[0]] | found[p[1]]) > 1]},
        "copies": {"images": len(equal), "paths": sum(map(len, equal)), "near": len(near)},
    }


def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    spec = words.pop(0) if words and not words[0].startswith("-") else ""
    about = "What a data set gives away. NAME[:PATH] as for train.py --data."
    options = Options(**parse_flags(Options, words, f"{PROG} NAME[:PATH]", about))
    if not spec:
        raise UsageError(f"no data set; name it first, as in {PROG} phantom")
    figures = audit(spec, options)
    print(render(figures))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

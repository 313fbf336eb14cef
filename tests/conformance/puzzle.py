"""Find the bug: one small bug in a copy of the project, and what it does to 30 steps of training.

    python tests/conformance/puzzle.py                      a bug drawn by chance
    python tests/conformance/puzzle.py --seed 3             the same bug every time
    python tests/conformance/puzzle.py --seed 3 --hints 2   with hints: file, function, line
    python tests/conformance/puzzle.py --seed 3 --reveal    with all hints and the bug

Shows the symptoms: curves above those of five sane seeds, a traced group, and the numbers of
`train.py --explain` beside the sane ones. In a terminal it then asks where the bug is. The bugs are
those of mutate.py whose symptoms are in results/puzzles.json, which tests/campaigns/puzzles.py
writes. Takes half a minute of one core. The checkout is not changed.
"""

import argparse
import ast
import json
import math
import random
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conformance.mutate import ROOT, Mutation, copied, every_mutation, put_into
from tests.conformance.symptoms import (
    SEED,
    STEPS,
    TRAINING,
    Curves,
    Symptom,
    explained,
    read_list,
    run,
    start_forks,
    symptoms,
    weights,
)

CURVES = ("reward", "rewards/format/mean", "rewards/accuracy/mean", "completions/mean_length")
CURVES += ("entropy", "loss", "kl", "grad_norm", "ratio/max", "clip_ratio/region_mean")
CURVES += ("frac_reward_zero_std", "sampling/sampling_logp_difference/max")
BARS = "▁▂▃▄▅▆▇█"


class Place(NamedTuple):
    file: str
    function: str
    line: int
    text: str


def symptoms_shown(found: Iterable[Symptom]) -> Iterator[str]:
    for name, value, low, high in found:
        yield f"   {name:<53} {value:<11.4g} sane {low:.4g} to {high:.4g}"


def curves_shown(here: Curves, sane: Sequence[Curves]) -> Iterator[str]:
    """Yield each curve of the bug above the median of the sane seeds, to the same scale."""
    yield f"{'':<43}{f'steps 1 to {STEPS}':<32}{'step 1':<11}{'mean':<11}last 10"
    for name in CURVES:
        middle = [median(values) for values in zip(*(one[name] for one in sane), strict=True)]
        rows = {"bug": here[name], "sane": middle}
        finite = [x for row in rows.values() for x in row if math.isfinite(x)]
        for label, row in rows.items():
            ends = "".join(f"{x:<11.4g}" for x in (row[0], fmean(row), fmean(row[-10:])))
            title = name if label == "bug" else ""
            yield f"{title:<38}{label:<5}{bars(row, min(finite), max(finite))}  {ends}"


def bars(row: Sequence[float], low: float, high: float) -> str:
    """A bar for each value, from `low` to `high`; "?" where there is no number.

    >>> bars([0.0, 0.5, 1.0, math.nan], 0.0, 1.0)
    '▁▅█?'
    """
    levels = (len(BARS) - 1) / ((high - low) or 1)
    return "".join(BARS[round((x - low) * levels)] if math.isfinite(x) else "?" for x in row)


def group_shown(trace: Path) -> Iterator[str]:
    """Yield a traced group, one whose rewards differ if there is one, and the tokens of its first
    completion of the largest advantage."""
    from safetensors.numpy import load_file

    record = json.loads(trace.read_text("utf-8"))
    numbers = load_file(trace.with_suffix(".safetensors"))
    groups = record["groups"]
    b = max(range(len(groups)), key=lambda b: not groups[b]["zero_variance"])
    group = groups[b]
    yield f"{group['question']} {group['options']}, right is {group['gold']}"
    for i, o in enumerate(group["completions"], 1):
        parts = ", ".join(f"{name} {value}" for name, value in o["parts"].items())
        yield f"   o_{i}: r {o['reward']:.4g} ({parts}), A {o['advantage']:.4f}, {o['text']!r}"
    advantages = [o["advantage"] for o in group["completions"]]
    best = advantages.index(max(advantages))
    at = (numbers["row"] == b * len(advantages) + best).nonzero()[0]
    names = ("logprobs", "old_logprobs", "ref_logprobs", "ratio", "kl", "weights", "loss")
    columns = [numbers[name] for name in names]
    columns = [column if column.ndim == 1 else column[-1] for column in columns]
    yield f"   o_{best + 1} in the last update"
    yield "   " + "".join(f"{name:<14}" for name in ("token", *names)).rstrip()
    for token, t in zip(group["completions"][best]["tokens"], at, strict=True):
        yield f"   {token[:12]!r:<14}" + "".join(f"{float(c[t]):<14.6g}" for c in columns).rstrip()


def explained_shown(here: Sequence[str], sane: Sequence[str]) -> Iterator[str]:
    """Yield the lines in which the two texts differ, a sane one and the bug's in turn."""
    for tag, i, j, k, m in SequenceMatcher(None, sane, here, autojunk=False).get_opcodes():
        if tag != "equal":
            for normal, changed in zip_longest(sane[i:j], here[k:m]):
                yield from [f"   sane {normal}"] * (normal is not None)
                yield from [f"   bug  {changed}"] * (changed is not None)
    if list(here) == list(sane):
        yield "   no difference"


def place(mutation: Mutation) -> Place:
    """Where the bug is in the checkout: the first character that it changes."""
    text = (ROOT / mutation.file).read_text("utf-8")
    differ = (i for i, (a, b) in enumerate(zip(mutation.old, mutation.new, strict=False)) if a != b)
    at = text.index(mutation.old) + next(differ, min(len(mutation.old), len(mutation.new)))
    line = text[:at].count("\n") + 1
    return Place(mutation.file, function_at(text, line), line, text.split("\n")[line - 1].strip())


def function_at(text: str, line: int) -> str:
    """The innermost function of a module around a line, with its class; "" if there is none.

    >>> function_at("class A:\\n    def f(self):\\n        return 1", 3)
    'A.f'
    """
    names, level = [], ast.parse(text)
    while level:
        scopes = (ast.FunctionDef, ast.ClassDef)
        inner = [node for node in ast.walk(level) if isinstance(node, scopes) and node is not level]
        inner = [node for node in inner if node.lineno <= line <= node.end_lineno]
        level = min(inner, key=lambda node: node.lineno, default=None)
        names += [level.name] if level else []
    return ".".join(names)


def hints(where: Place) -> list[str]:
    return [
        f"The file is {where.file}.",
        f"The function is {where.function}." if where.function else "It is in no function.",
        f"The line is {where.line}, in the checkout: {where.text}",
    ]


def revealed(mutation: Mutation, found: Iterable[Symptom]) -> Iterator[str]:
    """Yield what the bug is, the thread that it comes from, and the symptoms in the list."""
    yield f"The bug: {mutation.name}."
    yield from (f"   - {line}" for line in mutation.old.splitlines())
    yield from (f"   + {line}" for line in mutation.new.splitlines())
    readme = Path(__file__).with_name("README.md").read_text("utf-8")
    pattern = rf"^\| \d+[^|]*\| (.+?) \| (.+?) \| .*`(test_{mutation.thread}_\w+)`"
    if row := re.search(pattern, readme, re.MULTILINE):
        yield f"The test {row[3]} fails. It is kept for {row[1]}: {row[2]}."
    else:
        yield f"No other project's thread tells of it. The tests that fail: {mutation.thread}"
    yield "What gave it away:"
    yield from symptoms_shown(found)


def ask(mutation: Mutation, found: Iterable[Symptom], lines: Iterable[str]) -> Iterator[str]:
    """Yield the answers to what a reader types: guesses, and hint, reveal or quit."""
    where, left = place(mutation), hints(place(mutation))
    yield "Where is the bug? Type a file or a function; or hint, reveal, quit."
    for line in lines:
        guess = line.strip()
        words = re.findall(r"[\w./]+", guess)
        in_file = bool({where.file, Path(where.file).name} & {*words})
        right = where.function.rpartition(".")[2] in re.findall(r"\w+", guess)
        if guess == "quit":
            return
        if guess == "reveal" or right or (in_file and not where.function):
            yield from ["Right."] * (guess != "reveal")
            yield from (*left, *revealed(mutation, found))
            return
        if guess == "hint":
            yield left.pop(0) if left else "No more hints: try reveal."
        else:
            yield "The file is right. Which function?" if in_file else "No, it is not there."


def show_symptoms(mutation: Mutation, record: dict[str, Any]) -> Iterator[str]:
    """Yield the symptoms of a bug; it trains in a copy of the checkout, which goes afterwards."""
    sane = [*record["sane"].values()]
    with tempfile.TemporaryDirectory() as folder:
        copy, out = copied(Path(folder) / "copy"), Path(folder) / "run"
        normal = explained(copy, Path(folder) / "sane.txt")
        with put_into(copy, mutation):
            curves, changed = run(copy, out), explained(copy, Path(folder) / "bug.txt")
        yield f"A copy of the project has a bug: train.py {TRAINING} --steps {STEPS} --seed {SEED}"
        yield "\n1. Curves, and the median of five sane seeds below each"
        if curves:
            yield from curves_shown(curves, sane)
            yield "   Outside the range of the sane seeds:"
            yield from symptoms_shown(symptoms(curves, sane, record["noisy"]))
            yield f"\n2. A group of step {STEPS}"
            yield from group_shown(out / f"trace/step-{STEPS:06d}.json")
        else:
            yield f"   Training broke off: {out.with_suffix('.txt').read_text('utf-8')[-300:]}"
        yield "\n3. train.py --explain: the lines that differ"
        yield from explained_shown(changed, normal)


def puzzles(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the list with a symptom, in an order that does not follow the list's."""
    rows = [row for row in record["bugs"] if row["symptoms"]]
    return random.Random(0).sample(rows, len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, help="which bug; left out: chance decides")
    parser.add_argument("--hints", type=int, default=0, choices=range(4), help="how many to show")
    parser.add_argument("--reveal", action="store_true", help="show the hints and the bug")
    options = parser.parse_args()
    start_forks()
    seed = random.randrange(1000) if options.seed is None else options.seed
    record = read_list()
    rows = puzzles(record)
    row = rows[seed % len(rows)]
    mutation = next(m for m in every_mutation() if m.name == row["name"])
    if problem := mutation.misfit():
        sys.exit(f"puzzle.py: {problem}; see mutate.py --check")
    if record["weights"] != weights():
        print("The list was made with other weights; tests/campaigns/puzzles.py makes it again.")
    print(f"Puzzle {seed}. Three short runs, half a minute ...", flush=True)
    print(*show_symptoms(mutation, record), sep="\n", flush=True)
    found = [Symptom(*one) for one in row["symptoms"]]
    print()
    if options.reveal or options.hints:
        print(*hints(place(mutation))[: 3 if options.reveal else options.hints], sep="\n")
        print(*(revealed(mutation, found) if options.reveal else ()), sep="\n")
    elif sys.stdin.isatty():
        for answer in ask(mutation, found, sys.stdin):
            print(answer, flush=True)
    else:
        print("Where is the bug? --hints 1 to 3 and --reveal tell.")


if __name__ == "__main__":
    main()

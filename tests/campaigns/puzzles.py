"""Which small bugs show in 30 steps of training: the list of tests/conformance/puzzle.py. By hand:

    python tests/campaigns/puzzles.py                 goes on where it was stopped
    python tests/campaigns/puzzles.py --only GSPO     bugs with this word in the name

Trains five sane seeds, whose ranges are what a bug must leave, and five more as controls: a symptom
that a control has is a false alarm, and the results hold them. One traced run finds the lines that
training enters; the bugs of mutate.py elsewhere are no candidates. Then every candidate trains, in
chance order: one step, and 30 if that shows nothing. A run that breaks off is no puzzle. Writes
tests/conformance/results/puzzles.json after each run, anew if setting or weights have changed.
"""

import argparse
import ast
import json
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.conformance.mutate import Mutation, copied, every_mutation, exit_code, put_into  # noqa: E402
from tests.conformance.puzzle import place  # noqa: E402
from tests.conformance.symptoms import (  # noqa: E402
    LIST,
    SEED,
    STEPS,
    TRAINING,
    Curves,
    read_list,
    run,
    start_forks,
    symptoms,
    train,
    training,
    weights,
)

SANE, CONTROLS = (1, 2, 3, 4, 5), (SEED, 6, 7, 8, 9)
MOST = 6  # symptoms of a bug that are kept
Lines = dict[str, list[int]]  # the lines that ran, by file


def train_traced(copy: Path, words: list[str], said: Path) -> None:
    """`train`, which also writes the lines of the copy that ran, as JSON beside `said`."""
    ran: dict[str, set[int]] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(f"{copy}/"):
            return None
        if event == "line":
            ran.setdefault(file[len(f"{copy}/") :], set()).add(frame.f_lineno)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    train(copy, words, said)
    sys.settrace(None)
    said.with_suffix(".json").write_text(json.dumps({k: sorted(v) for k, v in ran.items()}))


def lines_that_run(copy: Path, folder: Path) -> Lines:
    said = folder / "traced.txt"
    if exit_code(train_traced, copy, training(folder / "traced", SEED, 3), said) != 0:
        sys.exit(f"puzzles.py: the traced run broke off: {said.read_text('utf-8')[-500:]}")
    return json.loads(said.with_suffix(".json").read_text("utf-8"))


def runs(mutation: Mutation, lines: Lines) -> bool:
    """Whether training runs the statement that the bug changes."""
    text, at = (ROOT / mutation.file).read_text("utf-8"), place(mutation).line
    around = [
        (node.end_lineno - node.lineno, range(node.lineno, node.end_lineno + 1))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.stmt) and node.lineno <= at <= node.end_lineno
    ]
    statement = min(around, key=lambda pair: pair[0])[1]
    return bool({*statement} & {*lines.get(mutation.file, [])})


def sane_runs(record: dict[str, Any], copy: Path, folder: Path) -> None:
    """Train the sane seeds and the controls that the record lacks."""
    sane, controls = record.setdefault("sane", {}), record.setdefault("controls", {})
    for seed in map(str, SANE):
        if seed not in sane:
            sane[seed] = rounded(run(copy, folder / f"sane-{seed}", int(seed)))
            keep(record)
    for seed in map(str, CONTROLS):
        if seed not in controls:
            curves = rounded(run(copy, folder / f"control-{seed}", int(seed)))
            controls[seed] = symptoms(curves, sane.values())
            if int(seed) == SEED:
                record["without a bug"] = curves
            keep(record)


def rounded(curves: Curves) -> Curves:
    return {name: [float(f"{x:.5g}") for x in row] for name, row in curves.items()}


def bug_row(mutation: Mutation, record: dict[str, Any], copy: Path, out: Path) -> dict[str, Any]:
    """Train with a bug; the row of the list. One step is enough if its figures are symptoms."""
    start, sane = time.monotonic(), record["sane"].values()
    with put_into(copy, mutation):
        for steps in (1, STEPS):
            curves = run(copy, out.with_name(f"{out.name}-{steps}"), SEED, steps)
            if not curves or (found := symptoms(curves, sane)):
                break
    found = found if curves else []
    outcome = "symptoms" if found else "within the range" if curves else "broke off"
    if rounded(curves) == record["without a bug"]:
        outcome = "no difference"
    row = {"name": mutation.name, "outcome": outcome, "steps": steps, "symptoms": found[:MOST]}
    return row | {"number": len(found), "seconds": round(time.monotonic() - start, 1)}


def keep(record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=None, separators=(",", ":"), ensure_ascii=False)
    LIST.write_text(text.replace('{"name"', '\n{"name"').replace('],"', '],\n"') + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="only bugs with this word in the name")
    options = parser.parse_args()
    os.nice(10)
    start_forks()
    fresh = {"training": TRAINING, "weights": weights()}
    record = read_list() if LIST.exists() else {}
    if {k: record.get(k) for k in fresh} != fresh:
        record = fresh
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy = copied(folder / "copy")
        sane_runs(record, copy, folder)
        if "candidates" not in record:
            lines = lines_that_run(copy, folder)
            found = [m.name for m in every_mutation() if runs(m, lines)]
            record |= {"candidates": random.Random(0).sample(found, len(found)), "bugs": []}
            keep(record)
        known = {m.name: m for m in every_mutation()}
        done = {row["name"] for row in record["bugs"]}
        for i, name in enumerate(record["candidates"]):
            if name in done or options.only not in name:
                continue
            row = bug_row(known[name], record, copy, folder / f"bug-{i}")
            record["bugs"].append(row)
            keep(record)
            print(f"{row['seconds']:6.1f} s  {name}: {row['outcome']}", flush=True)


if __name__ == "__main__":
    main()

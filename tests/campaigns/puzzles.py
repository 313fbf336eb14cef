"""Which small bugs show in 30 steps of training: the list of tests/conformance/puzzle.py. By hand:

    python tests/campaigns/puzzles.py                 goes on where it was stopped
    python tests/campaigns/puzzles.py --only GSPO     bugs with this word in the name

Trains five sane seeds, whose ranges a bug must leave by two widths, and three more as controls,
among them the seed of the bugs: a figure in which a control leaves them by one width is noisy and
no symptom. One traced run finds the lines that training enters; the bugs of mutate.py elsewhere are
no candidates. Then every candidate trains for one step, and those that show nothing for 30. A run
that breaks off is no puzzle.

Writes tests/conformance/results/puzzles.json after each run, anew if setting or weights changed.
"""

import argparse
import ast
import json
import os
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
    LIMIT,
    LIST,
    SEED,
    STEPS,
    TRAINING,
    WIDTHS,
    Curves,
    read_list,
    run,
    start_forks,
    symptoms,
    train,
    training,
    weights,
)

SANE, CONTROLS = (1, 2, 3, 4, 5), (SEED, 6, 7)
MOST = 6  # symptoms of a bug that are kept
KNOWN = {mutation.name: mutation for mutation in every_mutation()}
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
    words = training(folder / "traced", SEED, 2)
    if exit_code(train_traced, copy, words, said, limit=LIMIT) != 0:
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


def train_sane(record: dict[str, Any], copy: Path, folder: Path) -> None:
    """Train the sane seeds that the record lacks."""
    sane = record.setdefault("sane", {})
    for seed in SANE:
        if str(seed) not in sane:
            sane[str(seed)] = rounded(run(copy, folder / f"sane-{seed}", seed))
            if not sane[str(seed)]:
                sys.exit(f"puzzles.py: seed {seed} broke off without a bug")
            keep(record)


def train_controls(record: dict[str, Any], copy: Path, folder: Path) -> None:
    """Train the controls that the record lacks: sane seeds, whose symptoms are noise."""
    controls = record.setdefault("controls", {})
    for seed in CONTROLS:
        if str(seed) not in controls:
            curves = rounded(run(copy, folder / f"control-{seed}", seed))
            controls[str(seed)] = symptoms(curves, record["sane"].values(), widths=WIDTHS / 2)
            if seed == SEED:
                record["without a bug"] = curves
            record["noisy"] = sorted({one[0] for found in controls.values() for one in found})
            keep(record)


def rounded(curves: Curves) -> Curves:
    return {name: [float(f"{x:.5g}") for x in row] for name, row in curves.items()}


def train_bug(
    name: str, steps: int, record: dict[str, Any], copy: Path, out: Path
) -> dict[str, Any]:
    """Train with a bug; the row of the list."""
    start = time.monotonic()
    with put_into(copy, KNOWN[name]):
        curves = run(copy, out, SEED, steps)
    found = symptoms(curves, record["sane"].values(), record["noisy"]) if curves else []
    outcome = "symptoms" if found else "none" if curves else "broke off"
    if rounded(curves) == record.get("without a bug"):
        outcome = "no difference"
    row = {"name": name, "outcome": outcome, "steps": steps, "symptoms": found[:MOST]}
    return row | {"seconds": round(time.monotonic() - start, 1)}


def train_bugs(steps: int, record: dict[str, Any], copy: Path, folder: Path, only: str) -> None:
    """Train the candidates of which the record has no symptom and no run as long as this."""
    rows = {row["name"]: row for row in record["bugs"]}
    for i, name in enumerate(record["candidates"]):
        row = rows.get(name)
        if only not in name or (row and (row["outcome"] != "none" or row["steps"] >= steps)):
            continue
        rows[name] = row = train_bug(name, steps, record, copy, folder / f"bug-{i}-{steps}")
        record["bugs"] = [rows[name] for name in record["candidates"] if name in rows]
        keep(record)
        print(f"{row['seconds']:6.1f} s  {steps:2} steps  {name}: {row['outcome']}", flush=True)


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
        train_sane(record, copy, folder)
        train_controls(record, copy, folder)
        if "candidates" not in record:
            lines = lines_that_run(copy, folder)
            found = [mutation for mutation in KNOWN.values() if runs(mutation, lines)]
            found.sort(key=lambda mutation: mutation.file, reverse=True)
            record |= {"candidates": [mutation.name for mutation in found], "bugs": []}
            keep(record)
        train_bugs(1, record, copy, folder, options.only)
        train_bugs(STEPS, record, copy, folder, options.only)


if __name__ == "__main__":
    main()

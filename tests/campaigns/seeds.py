"""Three seeds of the default run, with supervised training and two controls beside it. By hand:

    python tests/campaigns/seeds.py --seeds 1 2 3       on 2 CPU cores about an hour
    python tests/campaigns/seeds.py --short             a few steps, to see that it works

Every run is `train.py` with its own flags; GRPO is also asked about lesions of a kind never shown.
What is done already is not run again, so the base is scored once: in the seconds of the first run.
Writes tests/campaigns/results/seeds.json (--short: seeds.json in the folder of the runs) and prints
its tables as Markdown.

Seeds answer the same questions, so pooled intervals are bootstraps over questions. A p-value is an
exact sign test over questions, of each question's changes added up over the seeds, corrected by
Holm over the cells of learned types on all modalities.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rewards.evaluation.rows import p_value, percent, points  # noqa: E402
from rewards.evaluation.scores import gain, mean_of  # noqa: E402
from rewards.evaluation.statistics import holm, mcnemar, students_t  # noqa: E402

ARMS = {
    "GRPO": [],
    "SFT, answers": ["--method", "sft", "--sft-target", "answer"],
    "SFT, reasoning (privileged)": ["--method", "sft", "--sft-target", "reasoning"],
    "GRPO, shuffled answers": ["--shuffle-answers"],
    "GRPO, format only": ["--reward", "format"],
}
SHORT = ["--steps", "3", "--train-size", "48", "--eval-size", "24", "--sample-every", "0"]
NEW_KIND = "phantom:new-kind"
MODALITIES = ("MRI", "CT", "XRAY")
FIGURES = ("accuracy", "format_rate", "forced_choice")
LEARNED = ("side", "quadrant", "size", "kind")  # the types that Holm's correction is over
TYPES = (*LEARNED, "presence", "count")
Rows = list[dict[str, Any]]
Pair = tuple[Rows, Rows]  # the rows of base and trained, of all seeds


def train(arm: str, seed: int, out: Path, extra: Sequence[str] = ()) -> Path:
    """The run folder of one arm and seed, trained now if it is not there."""
    run = out / f"{arm.split(' (')[0].replace(', ', '-').replace(' ', '-').lower()}-{seed}"
    if not (run / "summary.json").exists():
        shutil.rmtree(run, ignore_errors=True)  # what an interruption left
        flags = ["--modality", "MRI", "--group-size", "8", "--seed", str(seed), *ARMS[arm], *extra]
        for file in out.glob("*/predictions/base-*"):  # the base is the same in every run
            (run / "predictions").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, run / "predictions")
        call("train.py", *flags, "--out", str(run))
    return run


def ask_new_kind(run: Path) -> Path:
    """The folder of a run's answers about lesions of the kind never shown, asked now if need be."""
    folder = run / "other" / NEW_KIND
    if not (run / "new-kind.json").exists():
        for file in run.parent.glob(f"*/other/{NEW_KIND}/predictions/base-*"):
            copy = folder / "predictions" / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if copy != file:
                shutil.copy(file, copy)
        table = ["--controls", "none", "--json", str(run / "new-kind.json")]
        call("evaluate.py", "--run", str(run), "--data", NEW_KIND, *table)
    return folder


def call(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def rows(folder: Path, model: str, modality: str) -> Rows:
    """The answers of a model by id, so that those of base and trained make pairs."""
    file = folder / "predictions" / f"{model}-{modality}-reason.jsonl"
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(found, key=lambda row: row["id"])


def pooled(folders: Sequence[Path], modality: str) -> Pair:
    """The rows of base and trained of all seeds, in the same order."""
    before, after = (
        list(chain(*(rows(folder, model, modality) for folder in folders)))
        for model in ("base", "trained")
    )
    assert [row["id"] for row in before] == [row["id"] for row in after]
    return before, after


def forced_choice(pair: Pair) -> dict[str, Any]:
    """Forced choice of base and trained, and the gain with its interval, pooled over seeds."""
    base, trained = (mean_of(part, "forced_correct") for part in pair)
    return {"base": base, "trained": trained, "gain": gain(*pair, "forced_correct")}


def sign_test(pair: Pair) -> float:
    """Exact two-sided p of a sign test over questions: a question counts once, whatever it is over
    the seeds together: gained, lost or neither."""
    change: dict[str, int] = {}
    for before, after in zip(*pair, strict=True):
        step = int(after["forced_correct"]) - int(before["forced_correct"])
        change[before["id"]] = change.get(before["id"], 0) + step
    return mcnemar([x < 0 for x in change.values()], [x > 0 for x in change.values()])


def by_type(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """By modality, then by question type: `forced_choice`, and Holm's p of the learned types."""
    found: dict[str, dict[str, Any]] = {modality: {} for modality in MODALITIES}
    tests: dict[tuple[str, str], float] = {}
    for modality in MODALITIES:
        before, after = pooled(folders, modality)
        for kind in dict.fromkeys(row["question_type"] for row in before):
            pair = tuple(
                [r for r in part if r["question_type"] == kind] for part in (before, after)
            )
            found[modality][kind] = forced_choice(pair)
            if kind in LEARNED:
                tests[modality, kind] = sign_test(pair)
    for (modality, kind), p in zip(tests, holm(list(tests.values())), strict=True):
        found[modality][kind] |= {"p": tests[modality, kind], "holm_p": p}
    return found


def stated(summaries: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By modality and part of the finding: how often what the thought before the forced choice
    states is right, of base and trained, over the seeds together."""
    found: dict[str, dict[str, Any]] = {modality: {} for modality in MODALITIES}
    for modality in MODALITIES:
        for kind in LEARNED:
            found[modality][kind] = shares = {}
            for model in ("base", "trained"):
                cells = [s["results"][model][modality]["by_type"][kind] for s in summaries]
                n, correct = (sum(c["right"][key] for c in cells) for key in ("n", "correct"))
                shares[model] = {"n": n, "accuracy": correct / n if n else None}
    return found


def together(folders: Sequence[Path]) -> dict[str, Any]:
    """`forced_choice` over all seeds and modalities."""
    before, after = zip(*(pooled(folders, modality) for modality in MODALITIES), strict=True)
    return forced_choice((list(chain(*before)), list(chain(*after))))


def figures(runs: list[Path]) -> dict[str, Any]:
    """By modality: each figure's mean over seeds, base and trained, and gains pooled over seeds;
    the same by question type; and what each run took."""
    found: dict[str, Any] = {}
    summaries = [read(run / "summary.json") for run in runs]
    for modality in MODALITIES:
        cells: dict[str, Any] = {
            model: {
                name: fmean(s["results"][model][modality][name] for s in summaries)
                for name in FIGURES
            }
            for model in ("base", "trained")
        }
        pair = pooled(runs, modality)
        cells["gain"] = {
            "accuracy": gain(*pair, "correct"),
            "forced_choice": gain(*pair, "forced_correct"),
        }
        if len(runs) > 1:
            gains_of = [s["gains"]["trained"][modality] for s in summaries]
            cells["gain_over_seeds"] = {
                name: students_t([gains[name]["gain"] for gains in gains_of])
                for name in ("accuracy", "forced_choice")
            }
        found[modality] = cells
    found["by_type"], found["together"] = by_type(runs), together(runs)
    found["stated"] = stated(summaries)
    for name in ("seconds", "peak_mb", "results", "gains"):
        found[name] = [s[name] for s in summaries]
    return found


def markdown(arms: dict[str, Any]) -> str:
    """The tables of the manual, in percent; gains pooled over seeds with 95 % intervals."""
    last = _gains_of_types(arms), _stated(arms), _together(arms)
    return "\n\n".join([_accuracies(arms), *_types(arms), *last])


def _accuracies(arms: dict[str, Any]) -> str:
    head = ["arm", "modality", "strict", "format", "forced choice"]
    lines = [[*head, "gain strict", "gain forced choice"]]
    for arm, found in arms.items():
        for modality in MODALITIES:
            cells = found[modality]
            pairs = [_change(*(cells[m][f] for m in ("base", "trained"))) for f in FIGURES]
            gains = [points(cells["gain"][f]) for f in ("accuracy", "forced_choice")]
            lines.append([arm, modality, *pairs, *gains])
    return _table(lines)


def _types(arms: dict[str, Any]) -> list[str]:
    """Forced choice by question type, a table a data set."""
    tables = []
    for part, what in (("by_type", "phantom"), ("new_kind", NEW_KIND)):
        lines = [[f"forced choice on {what}", "modality", *TYPES]]
        for arm, found in ((arm, found[part]) for arm, found in arms.items() if part in found):
            for modality, kinds in found.items():
                known = [kinds.get(kind) for kind in TYPES]
                cells = [_change(c["base"], c["trained"]) if c else "-" for c in known]
                lines.append([arm, modality, *cells])
        tables.append(_table(lines))
    return tables


def _gains_of_types(arms: dict[str, Any]) -> str:
    """The gains of GRPO by question type, each with its interval and Holm's p."""
    lines = [["gain of GRPO in forced choice", "modality", *TYPES]]
    for part, what in (("by_type", "phantom"), ("new_kind", NEW_KIND)):
        for modality, kinds in arms["GRPO"][part].items():
            known = [kinds.get(kind) for kind in TYPES]
            cells = [_gained(cell) if cell else "-" for cell in known]
            lines.append([what, modality, *cells])
    return _table(lines)


def _stated(arms: dict[str, Any]) -> str:
    """How often what a thought states is right, by part of the finding."""
    lines = [["right of what is stated", "modality", *LEARNED]]
    for arm, found in arms.items():
        for modality, parts in found["stated"].items():
            shares = [[part[m]["accuracy"] for m in ("base", "trained")] for part in parts.values()]
            lines.append([arm, modality, *(_change(*pair) for pair in shares)])
    return _table(lines)


def _gained(cell: dict[str, Any]) -> str:
    return points(cell["gain"]) + (f", p {p_value(cell['holm_p'])}" if "holm_p" in cell else "")


def _together(arms: dict[str, Any]) -> str:
    """What each arm gained over all seeds and modalities, and what its runs took."""
    lines = [["arm", "forced choice, all modalities", "gain", "seconds", "peak MB"]]
    for arm, found in arms.items():
        cell, taken = found["together"], [found["seconds"], found["peak_mb"]]
        listed = [", ".join(f"{value:.0f}" for value in values) for values in taken]
        change = _change(cell["base"], cell["trained"])
        lines.append([arm, change, points(cell["gain"]), *listed])
    return _table(lines)


def _change(before: float, after: float) -> str:
    return f"{percent(before)} → {percent(after)}"


def _table(lines: list[list[str]]) -> str:
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--short", action="store_true", help="a few steps and questions")
    options = parser.parse_args()
    out = (options.out or Path("runs/seeds-short" if options.short else "runs/seeds")).resolve()
    extra = SHORT if options.short else []
    runs = {arm: [train(arm, seed, out, extra) for seed in options.seeds] for arm in ARMS}
    arms = {arm: figures(folders) for arm, folders in runs.items()}
    asked = [ask_new_kind(run) for run in runs["GRPO"]]
    tables = [read(run / "new-kind.json") for run in runs["GRPO"]]
    arms["GRPO"]["new_kind"] = by_type(asked)
    arms["GRPO"]["new_kind_together"] = together(asked)
    arms["GRPO"]["new_kind_results"] = [table["results"] for table in tables]
    record = {
        "command": "python tests/campaigns/seeds.py --seeds " + " ".join(map(str, options.seeds)),
        "machine": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
        "torch": torch.__version__,
        "arms": arms,
    }
    kept = ROOT / "tests" / "campaigns" / "results"
    results = (out if options.short else kept) / "seeds.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(markdown(arms))


if __name__ == "__main__":
    main()

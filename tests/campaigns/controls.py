"""Whether a run's accuracy is seeing: phantom test questions, their controls, and samples. By hand:

    python tests/campaigns/controls.py --run runs/NAME [runs/OTHER ...] [--eval-size 1200]

The first run is the one to be believed; those after it are controls of training, such as a run
trained without images. Each is evaluated with `--controls full`, and its questions are sampled,
with their options and without. The base is asked once. Writes
tests/campaigns/results/controls.json, by run, with what must hold of the first: no control above
chance (one-sided exact test, Holm, 0.01), the majority letter at chance exactly, and strict
accuracy above the upper bound of every control. Prints the figures of all runs.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rewards.evaluation.rows import percent, points  # noqa: E402 (the path comes first)
from rewards.evaluation.statistics import holm  # noqa: E402
from rewards.evaluation.table import ALPHA, BLIND, above_chance  # noqa: E402

RESULTS = ROOT / "tests" / "campaigns" / "results" / "controls.json"
KEPT = ("chance", "results", "gains", "controls", "reliance", "calibration", "recalls", "verdicts")
SAMPLED = ("sampled", "sampled_gains", "verdicts")
SETTINGS = ("recipe", "seed", "steps", "method", "reward", "blind", "shuffle_answers")


def evaluated(run: Path, *flags: str) -> dict[str, Any]:
    """The table of evaluate.py with these flags."""
    file = run / f"campaign{'-'.join(flags)}.json"
    command = ["evaluate.py", "--run", str(run), "--ood", "CT,XRAY", *flags, "--json", str(file)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return json.loads(file.read_text())


def held(table: dict[str, Any]) -> dict[str, bool]:
    """What must hold of a run's table, if its accuracy is seeing."""
    blind = [
        found[modality]
        for controls in table["controls"].values()
        for arm, found in controls.items()
        for modality in found
        if arm in BLIND
    ]
    accuracies = table["results"]["trained"]
    trained = table["controls"]["trained"]
    return {
        "no control above chance": min(holm([above_chance(found) for found in blind])) >= ALPHA,
        "majority letter at chance": all(
            abs(found["accuracy"] - table["chance"][modality]) < 1e-9
            for modality, found in trained["majority_letter"].items()
        ),
        "trained above every blind control": all(
            accuracies[modality]["accuracy"] > found[modality]["ci95"][1]
            for arm, found in trained.items()
            for modality in found
            if arm in BLIND
        ),
    }


def without_curves(figures: Any) -> Any:
    """The same without the points of curves, which a report draws and no table shows."""
    if not isinstance(figures, dict):
        return figures
    return {k: without_curves(v) for k, v in figures.items() if k not in ("curve", "bins")}


def rows(arms: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Name, table, model and modality of each row: the base of the first run, then every run."""
    first = next(iter(arms.values()))
    yield from (("base", first, "base", modality) for modality in first["chance"])
    for name, table in arms.items():
        yield from ((name, table, "trained", modality) for modality in table["chance"])


def markdown(arms: dict[str, Any]) -> Iterator[str]:
    """The lines of the manual's table: base and then each run, by modality."""
    titles = ["forced choice", "gain", "visual reliance", "blank changes", "shuffled changes"]
    titles += ["ECE (calibrated)", "AUROC", "accuracy at 50 %", "sensitivity, specificity"]
    yield from _head(titles)
    for name, table, model, modality in rows(arms):
        yield _line([name, modality, *_cells(table, model, modality)])


def _head(titles: list[str]) -> Iterator[str]:
    yield _line(["model", "modality", *titles])
    yield "|" + "---|" * (2 + len(titles))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(table: dict[str, Any], model: str, modality: str) -> list[str]:
    reliance, calibration, recalls, results = (
        table[part][model][modality] for part in ("reliance", "calibration", "recalls", "results")
    )
    gain = table["gains"].get(model, {}).get(modality, {}).get("forced_choice")
    lost = reliance["visual_reliance"]
    changes = [reliance[f"sensitivity_{name}"] for name in ("blank", "shuffled")]
    recall = recalls["yes/no"]["forced_choice"]["recall"]
    auroc = calibration["auroc"] or {"value": None}
    return [
        percent(results["forced_choice"]),
        points(gain) if gain else "-",
        points(lost | {"gain": lost["value"]}) + f" of {percent(lost['ceiling']['value'])}",
        *(_interval(one) for one in changes),
        f"{percent(calibration['ece'])} ({percent(calibration['calibrated']['mean'])})",
        _interval(auroc),
        _interval(calibration["accuracy_at_50"]),
        ", ".join(_interval(recall[part]) for part in ("sensitivity", "specificity")),
    ]


def _interval(figure: dict[str, Any]) -> str:
    value = figure.get("value", figure.get("accuracy"))
    if value is None:
        return "-"
    return f"{percent(value)} [{', '.join(percent(end) for end in figure['ci95'])}]"


def sampled(arms: dict[str, Any], way: str) -> Iterator[str]:
    """The lines of the table of pass@k, "open" or with "options", k up to half of the samples."""
    for i, (name, table, model, modality) in enumerate(rows(arms)):
        found = table[way]["sampled"][model][modality]
        ks = [k for k in found["ci95"] if int(k[5:]) <= found["samples"] // 2]
        yield from _head(ks) if i == 0 else ()
        values = ({"value": found[k], "ci95": found["ci95"][k]} for k in ks)
        yield _line([name, modality, *map(_interval, values)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, nargs="+", type=Path)
    parser.add_argument("--eval-size", default="300", help="test questions of each modality")
    options = parser.parse_args()
    size = ("--eval-size", options.eval_size)
    first, *others = options.run
    arms: dict[str, Any] = {}
    for run in options.run:
        for file in first.glob("predictions/base-*") if run in others else ():
            (run / "predictions").mkdir(exist_ok=True)
            shutil.copy(file, run / "predictions")
        table = evaluated(run, *size, "--controls", "full")
        drawn = ("--samples", "32", "--controls", "none")
        ways = {"options": drawn, "open": (*drawn, "--prompt", "open")}
        passes = {way: evaluated(run, *size, *flags) for way, flags in ways.items()}
        config = json.loads((run / "config.json").read_text())["config"]
        arms[run.name] = {
            "of": {name: config[name] for name in SETTINGS} | {"eval_size": options.eval_size},
            **({"held": held(table)} if run == first else {}),
            **{name: without_curves(table[name]) for name in KEPT},
            **{way: {name: found[name] for name in SAMPLED} for way, found in passes.items()},
        }
        RESULTS.write_text(json.dumps(arms, indent=1) + "\n")
    print(
        "\n".join([*markdown(arms), "", *sampled(arms, "options"), "", *sampled(arms, "open"), ""])
    )
    for name, table in arms.items():
        print(name, *table["verdicts"], *table["open"]["verdicts"], sep="\n    ")
    print(json.dumps(arms[first.name]["held"], indent=1))


if __name__ == "__main__":
    main()

"""What one step asks of the machine, counted: FLOPs, bytes, kernel launches, host waits and copies.

    python tests/benchmarks/step_cost.py                    at the shapes of Qwen2-VL-2B, in seconds
    python tests/benchmarks/step_cost.py --trl trl/bin/python          beside TRL, half an hour
    python tests/benchmarks/step_cost.py --lower            make the test hold what was reached
    python tests/benchmarks/step_cost.py --table            as Markdown

No clock, so two runs of the same code print the same. What is counted: operations.py. Waits and
copies are those of a GPU (published.py); beside TRL, on a CPU, a wait is an operation whose result
the host reads. "Least" is that of counts.py. The layers of a model are alike, so two and three of
them are run, and the 28 follow. Writes tests/benchmarks/results/step_cost.json: "before" is the
project before its kernels were reduced (commit 7b3ed93), "now" the last count, "most" what the test
holds of a model of two layers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers import Qwen2VLConfig

from models.lora import R
from tests.benchmarks import counts
from tests.benchmarks.card import OnCard, Once
from tests.benchmarks.counts import Cost, Work
from tests.benchmarks.memory import QWEN2_VL_2B, make_model
from tests.benchmarks.operations import Tally
from tests.benchmarks.published import PROMPT_TOKENS, counted_step
from tests.benchmarks.same_work import Case, Task, draw_images
from tests.models.hub import hub_config
from tests.tiny import SPECIAL

FILE = Path(__file__).parent / "results" / "step_cost.json"
LAYERS, PROMPTS = QWEN2_VL_2B["num_hidden_layers"], 4
# (G, checkpointing)
CASES = {
    "G 4": (4, False),
    "G 8": (8, False),
    "G 4, checkpointing": (4, True),
    "G 8, checkpointing": (8, True),
}
LENGTH, WINDOW = 512, 8  # new tokens; steps between two looks of the host
BESIDE_TRL = {"224px": Case(), "448px": Case(width=448, height=448)}
PHASES = ("prefill", "decode", "reference", "update", "optimizer", "other")


def grown(two: Tally, three: Tally) -> Tally:
    """The count with all layers, from those with two and with three."""
    pairs = zip(vars(two).values(), vars(three).values(), strict=True)
    return Tally(*(a + (LAYERS - 2) * (b - a) for a, b in pairs))


def at_2b(group_size: int, checkpointing: bool, length: int = LENGTH) -> dict[str, Any]:
    """A step of the recipe medvlm-r1, and its token step."""
    (two, step), (three, next_step) = (
        counted_step(group_size, length, layers, checkpointing) for layers in (2, 3)
    )
    phases = {name: grown(two.phases[name], three.phases[name]) for name in PHASES}
    least = fewest(group_size, length, checkpointing)
    table = {name: vars(tally) | against(tally, least.get(name)) for name, tally in phases.items()}
    whole = sum(phases.values(), Tally())
    waits, windows = whole.waits, -(-length // WINDOW)
    launched = grown_names(step.places.launches, next_step.places.launches)
    return {
        "phases": table,
        "step": vars(whole),
        "waits beside one a window": waits - windows,
        "token step": vars(grown(step.cost, next_step.cost)),
        "launches of a token step": launched,
        "waits by line": dict(two.places.waits.most_common()),
        "copies by line": dict(two.places.copies.most_common()),
        "not in kernels.json": sorted(two.places.unknown + step.places.unknown),
    }


def grown_names(two: Counter[str], three: Counter[str]) -> dict[str, int]:
    found = {name: n + (LAYERS - 2) * (three[name] - n) for name, n in two.items()}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def fewest(group_size: int, length: int, checkpointing: bool) -> dict[str, Cost]:
    """What counts.py says each phase needs at least."""
    names = dict.fromkeys(SPECIAL, 0)
    config = Qwen2VLConfig(**hub_config(names) | QWEN2_VL_2B)
    sizes, bare = (counts.sizes_of(config, rank, itemsize=2) for rank in (R, 0))
    work = Work(PROMPTS, PROMPT_TOKENS, group_size, length)
    forth, back = counts.update(sizes, work, checkpointing)
    return {
        "prefill": counts.prefill(sizes, work),
        "decode": counts.decode(sizes, work),
        "reference": counts.reference(bare, work),
        "update": Cost(forth.flops + back.flops, forth.bytes + back.bytes),
    }


def against(tally: Tally, least: Cost | None) -> dict[str, Any]:
    if least is None:
        return {}
    times = {
        "times flops": round(tally.flops / least.flops, 3),
        "times bytes": round(tally.bytes / least.bytes, 2),
    }
    return {"least flops": least.flops, "least bytes": least.bytes} | times


def beside_trl(python: str, models: Path) -> dict[str, Any]:
    """Both sides of each case, on this CPU, and TRL's counts as multiples of ours."""
    model = make_model("29M", models / "29M")
    found = {}
    for name, case in BESIDE_TRL.items():
        with tempfile.TemporaryDirectory() as images:
            draw_images(case, 1, Path(images))
            task = json.dumps(asdict(Task(case, model, images, steps=1, threads=1)))
            ours, trl = (side(python, which, task) for which in ("ours", "trl"))
        ratios = {phase: ratio(ours.get(phase), trl.get(phase)) for phase in (*PHASES, "step")}
        found[name] = {"ours": ours, "trl": trl, "trl over ours": ratios}
    return found


def side(python: str, which: str, task: str) -> dict[str, Any]:
    program = [python, str(Path(__file__).parent / "counted_side.py"), which, task]
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
    phases = json.loads(done.stdout.splitlines()[-1])
    whole = sum((Tally(**tally) for tally in phases.values()), Tally())
    return phases | {"step": vars(whole)}


def ratio(ours: dict[str, int] | None, trl: dict[str, int] | None) -> dict[str, float]:
    if not ours or not trl:
        return {}
    names = ("flops", "bytes", "launches")
    return {name: round(trl[name] / ours[name], 2) for name in names if ours[name]}


def held(step: OnCard, token_step: Once) -> dict[str, int]:
    """What may only fall, of a step of 512 tokens."""
    passes = ("prefill", "reference", "update")
    whole = sum(step.phases.values(), Tally())
    return {
        "launches of a token step": token_step.cost.launches,
        **{f"launches of {name}": step.phases[name].launches for name in passes},
        "waits beside one a window": whole.waits - LENGTH // WINDOW,
        "copies": whole.copies,
    }


def markdown(record: dict[str, Any]) -> str:
    """The tables of the README."""
    lines = []
    for when in [name for name in ("before", "now") if name in record]:
        for case, found in record[when].get("2B", {}).items():
            lines += ["", f"2B, {case}, {when}:", "", *rows_of_2b(found)]
        for case, found in record[when].get("29M", {}).items():
            lines += ["", f"29M, {case}, {when}; TRL over ours:", "", *rows_of_29m(found)]
    return "\n".join(lines)


def rows_of_2b(found: dict[str, Any]) -> list[str]:
    head = ("phase", "TFLOP", "x least", "GB", "x least", "launches", "waits", "copies")
    rows = [head, ["---"] * len(head)]
    for name, one in [*found["phases"].items(), ("step", found["step"])]:
        times = [str(one.get(key, "")) for key in ("times flops", "times bytes")]
        counted = [str(one[key]) for key in ("launches", "waits", "copies")]
        tera, giga = f"{one['flops'] / 1e12:.1f}", f"{one['bytes'] / 1e9:.0f}"
        rows.append([name, tera, times[0], giga, times[1], *counted])
    one = found["token step"]
    rows.append(["a token step", f"{one['flops'] / 1e12:.2f}", "", f"{one['bytes'] / 1e9:.1f}", ""])
    rows[-1] += [str(one["launches"]), str(one["waits"]), str(one["copies"])]
    return [f"| {' | '.join(row)} |" for row in rows]


def rows_of_29m(found: dict[str, Any]) -> list[str]:
    rows = [("phase", "FLOPs", "bytes", "operations"), ["---"] * 4]
    for name, one in found["trl over ours"].items():
        if one:
            rows.append([name, *(str(one.get(key, "")) for key in ("flops", "bytes", "launches"))])
    return [f"| {' | '.join(row)} |" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trl", metavar="PYTHON", help="of the environment that has TRL")
    parser.add_argument("--models", type=Path, help="folder to keep the random model in")
    parser.add_argument("--before", action="store_true", help="write under 'before'")
    parser.add_argument("--lower", action="store_true", help="lower what the test holds")
    parser.add_argument("--table", action="store_true", help="print the results and stop")
    asked = parser.parse_args()
    record = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if asked.table:
        print(markdown(record))
        return
    found = record.setdefault("before" if asked.before else "now", {})
    found["2B"] = {name: at_2b(*case) for name, case in CASES.items()}
    now, most = held(*counted_step(8, LENGTH, 2, checkpointing=False)), record.get("most", {})
    for name, count in now.items():
        print(f"{name}, with two layers: {count}, held: {most.get(name)}")
    if asked.lower:
        record["most"] = {name: min(count, most.get(name, count)) for name, count in now.items()}
    if asked.trl:
        with tempfile.TemporaryDirectory() as folder:
            found["29M"] = beside_trl(asked.trl, asked.models or Path(folder))
    FILE.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

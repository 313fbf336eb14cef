"""What only a GPU can say: one command a part, each under 9 minutes on an H100.

    python tests/gpu/measure.py --list
    python tests/gpu/measure.py --part 4               tests/gpu/results/part-4-CARD.json
    python tests/gpu/measure.py --part 4 --cap-gb 40   as on a card of 40 GB
    python tests/gpu/measure.py --part 4 --small       on any machine: does it go through?

A part is made of sections, and one that fails leaves the others to run: its error stands in the
file. README.md says how to read them.
"""

import argparse
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from tests.gpu import machine, operators, programs, steps
from tests.gpu.machine import FULL, SMALL, Row, Size

RESULTS = Path(__file__).parent / "results"
Section = Callable[..., Iterator[Row]]
# What it says, and its sections; `capped` ones start train.py with the same cap.
PARTS: dict[int, tuple[str, tuple[Section, ...]]] = {
    1: ("facts of the card, its rates", (operators.rates,)),
    2: (
        "attention and drawing by kernel",
        (operators.attention_of_a_completion, operators.attention_of_a_token, operators.drawing),
    ),
    3: ("the default phantom run, card against CPU", (programs.phantom,)),
    4: ("2B: rollout, graphs against calls, a token step over its floor", (steps.rollouts,)),
    5: ("2B: sampler against scorer, KL at the start, the gradient again", (steps.numbers,)),
    6: ("2B: passes with and without checkpointing, and the plan", (programs.plans, steps.passes)),
    7: ("three steps of train.py at medvlm-r1, G 8", (programs.three_steps,)),
    8: ("2B: kernels of each operation, beside kernels.json", (steps.kernels,)),
    9: ("TRL's GRPOTrainer on the same work", (programs.trl,)),
}
CAPPED = (programs.phantom, programs.plans, programs.three_steps)


def measured(part: int, size: Size, gigabytes: float | None) -> Row:
    """All rows of a part, with the card and the versions."""
    title, sections = PARTS[part]
    rows, started = [], time.perf_counter()
    for section in sections:
        given = (gigabytes,) if section in CAPPED else ()
        try:
            for row in section(size, *given):
                rows.append(rounded(row))
                print(json.dumps(rows[-1]), flush=True)
        except Exception as error:
            where = traceback.format_exc(limit=-3).splitlines()
            rows.append({"failed": section.__name__, "error": repr(error)[:500], "where": where})
            print(json.dumps(rows[-1]), flush=True)
        machine.forget_peak()
    seconds = time.perf_counter() - started
    record = {"part": part, "title": title, "small": size.small, "cap_gb": gigabytes}
    return record | {"machine": machine.facts(), "seconds": round(seconds, 1), "rows": rows}


def rounded(row: Row) -> Row:
    """Six digits of each number."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}


def train(gigabytes: float, words: list[str]) -> None:
    """train.py, with so many GB of the card; 0: all."""
    if gigabytes:
        machine.cap(gigabytes)
    import train as program
    from grpo.settings.errors import exit_on_usage_error

    with exit_on_usage_error("train.py"):
        program.main(words)


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        train(float(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", type=int, choices=PARTS, nargs="+", default=[])
    parser.add_argument("--list", action="store_true", help="name the parts and stop")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on a CPU too")
    parser.add_argument("--cap-gb", type=float, help="so much of the card's memory (10^9 bytes)")
    parser.add_argument("--out", type=Path, help="folder for the JSON; none for --small")
    asked = parser.parse_args()
    if asked.list or not asked.part:
        print(*(f"{part}: {title}" for part, (title, _) in PARTS.items()), sep="\n")
        return
    if not asked.small and not machine.ON_GPU:
        parser.error("no GPU is here; --small runs every part on a CPU")
    if asked.cap_gb:
        machine.cap(asked.cap_gb)
    folder = asked.out or (None if asked.small else RESULTS)
    for part in asked.part:
        record = measured(part, SMALL if asked.small else FULL, asked.cap_gb)
        print(f"part {part}: {record['seconds']} s")
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            card = re.sub(r"\W+", "-", record["machine"]["card"]).lower()
            text = json.dumps(record, indent=1) + "\n"
            (folder / f"part-{part}-{card}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""What the shipped models see, say and choose, before any training. By hand:

    python tests/campaigns/base.py              on 2 CPU cores some minutes
    python tests/campaigns/base.py --size 24    a few questions, to see that it works

For phantom and phantom-base, on the test questions of each modality: `own`, the forced choice after
the model's own thought; `given`, the forced choice after the true report; `described`, which parts
of the finding the answer to one fixed prompt names right (number on all scenes, the rest on scenes
of one lesion). Writes tests/campaigns/results/base.json (--size: prints alone).
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data.example import VQAExample  # noqa: E402 (the path comes first)
from data.phantom import questions as phantom  # noqa: E402
from grpo.settings.config import Config  # noqa: E402
from models.answering import answer, forced_choice  # noqa: E402
from models.open_policy import open_policy  # noqa: E402
from models.policy import Policy  # noqa: E402
from rewards.answers import reasoning  # noqa: E402
from rewards.evaluation.predictions import answered  # noqa: E402
from rewards.evaluation.scores import cell, share  # noqa: E402

BATCH = 60
PROMPT = "Describe the findings."
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Described(VQAExample):
    """A question whose prompt asks for nothing but a description of its image."""

    prompt = PROMPT


def own(policy: Policy, examples: Sequence[VQAExample]) -> Rows:
    """The rows of an evaluation."""
    answers = answer(policy, examples, 64, reasoning)
    return [answered(*pair) for pair in zip(examples, answers, strict=True)]


def given(policy: Policy, examples: Sequence[VQAExample]) -> Rows:
    """The forced choice after the true report."""
    prompts, reports = policy.encode(examples), [e.reasoning for e in examples]
    choices = forced_choice(policy, prompts, examples, reports)
    return [
        {"question_type": e.question_type, "id": e.id, "image": [], "options": e.options}
        | {"correct": choice.index(max(choice)) == e.gold}
        for e, choice in zip(examples, choices, strict=True)
    ]


def described(policy: Policy, examples: Sequence[VQAExample]) -> Rows:
    """A row a part of the finding: named right or not."""
    asked = [Described(**vars(example)) for example in examples]
    greedy = {"group_size": 1, "keys": None, "temperature": 0.0, "max_completion_length": 64}
    groups = policy.sample(policy.encode(asked), **greedy)
    rows = []
    for example, group in zip(examples, groups, strict=True):
        true, said = example.reasoning, policy.decode(group.completions[0])
        right = {"number": said.split(" ")[0] == true.split(" ")[0]}
        right["presence"] = (said == "No lesion.") == (true == "No lesion.")
        if len(example.findings) == 1:
            right |= {kind: part in said for kind, part in parts(example.findings[0]).items()}
        for kind, correct in right.items():
            shown = {"id": example.id, "image": [], "options": ()}
            rows.append(shown | {"question_type": kind, "correct": correct})
    return rows


def parts(finding: str) -> dict[str, str]:
    """The words of a finding that name its parts.

    >>> parts("small solid mass, upper left")
    {'size': 'small ', 'kind': 'solid mass', 'quadrant': 'upper left', 'side': ' left'}
    """
    lesion, quadrant = finding.split(", ")
    size, kind = lesion.split(" ", 1)
    side = " " + quadrant.split(" ")[1]
    return {"size": size + " ", "kind": kind, "quadrant": quadrant, "side": side}


def by_type(rows: Rows) -> dict[str, Any]:
    """Accuracy and interval by question type."""
    found = defaultdict(list)
    for row in rows:
        found[row["question_type"]].append(row)
    return {kind: share(part) for kind, part in found.items()}


def figures(policy: Policy, size: int) -> dict[str, Any]:
    """All figures of a model, by modality."""
    found = {}
    for modality in phantom.MODALITIES:
        examples = phantom.load(modality, split="test", size=size)
        rows: dict[str, Rows] = {"own": [], "given": [], "described": []}
        for start in range(0, size, BATCH):
            batch = examples[start : start + BATCH]
            for ask in (own, given, described):
                rows[ask.__name__] += ask(policy, batch)
        whole = cell(rows["own"])
        found[modality] = {
            "strict": whole["accuracy"],
            "format_rate": whole["format_rate"],
            "forced_choice": whole["forced_choice"],
            "own": {kind: part["forced_choice"] for kind, part in whole["by_type"].items()},
            "given": by_type(rows["given"]),
            "described": by_type(rows["described"]),
        }
        print(policy_line(modality, found[modality]), flush=True)
    return found


def policy_line(modality: str, found: dict[str, Any]) -> str:
    lines = []
    for name in ("own", "given", "described"):
        cells = (f"{kind} {100 * part['accuracy']:.1f}" for kind, part in found[name].items())
        lines.append(f"{modality} {name}: {', '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, help="questions a modality; 1,200 and a file by default"
    )
    parser.add_argument("--models", nargs="+", default=["phantom", "phantom-base"])
    options = parser.parse_args()
    record: dict[str, Any] = {"command": "python tests/campaigns/base.py", "models": {}}
    record["torch"] = torch.__version__
    for model in options.models:
        print(model, flush=True)
        with torch.no_grad():
            policy = open_policy(Config(model=model))
            record["models"][model] = figures(policy, options.size or 1200)
    if not options.size:
        results = ROOT / "tests" / "campaigns" / "results" / "base.json"
        results.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""A paper's table from records of arms: which figure stands where, over one seed and over two."""

import json
from typing import Any

from grpo.reproduce.markdown import page
from grpo.reproduce.paper_tables import Arm, Table
from rewards.evaluation.table import tabulate
from tests.rewards.evaluation.test_table import rows

TABLE = Table(
    about="A paper",
    paper="it got 50. No DPO",
    arms=(Arm("SFT", paper="94.00"), Arm("GRPO", after="SFT"), Arm("judged")),
    flags={},
    evaluation="",
    unseen={},
    downloads="",
)


def closed(right: int, length: int) -> dict[str, Any]:
    """Answers of a model to 10 questions, with a perplexity of `length` / 10."""
    measures = [{"closed": True, "reference_nll": 0.0, "reference_tokens": 1}]
    return {
        "tests": {"MRI": rows(right, 10, length=length, closed=True)},
        "measures": {"MRI": measures},
    }


def arm(accuracies: dict[str, tuple[int, int]], seeds: tuple[str, ...] = ()) -> dict[str, Any]:
    """The record of an arm whose models have (right answers of 10, mean length)."""
    answers = {name: closed(*figures) for name, figures in accuracies.items()}
    table = json.loads(json.dumps(tabulate(answers, "MRI", seeds=seeds)))
    return {
        "stands_in": ["findings for semantic"],
        "init": "instruct",
        "prompt": "reason",
        "steps": 2,
        "examples": 32,
        "completions": 256,
        "seconds": [1.4, 2.6],
        "peak_mb": 900.4,
        "evaluation": table,
        "unseen": {"phantom:new-kind": table},
    }


def lines_of(text: str) -> dict[tuple[str, str], list[str]]:
    """(first column's head, row) -> cells of all tables of a page."""
    found, head = {}, ""
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("| ")]
        table = [line.strip("| ").split(" | ") for line in lines]
        for i, (row, *cells) in enumerate(table):
            head = row if i == 0 else head
            found[head, row] = [cell.strip() for cell in cells]
    return found


def test_every_figure_stands_in_its_row_as_the_mean_over_the_seeds() -> None:
    one = arm({"base": (1, 10), "trained": (4, 10)})
    two = arm({"base": (1, 10), "trained": (5, 10), "grpo-2": (7, 20)}, ("trained", "grpo-2"))
    skipped = {"skipped": "needs an expert model"}
    record = {"command": "python", "scale": "phantom"}
    text = page(record | {"arms": {"SFT": one, "GRPO": two, "judged": skipped}}, TABLE)
    found = lines_of(text)

    accuracy, figures = "strict accuracy, %", "in distribution"
    assert found[accuracy, "chance"] == ["50.0"]
    assert found[accuracy, "base"] == ["10.0 [1.8, 40.4]", "10.0"]
    assert found[accuracy, "SFT"] == ["40.0 [16.8, 68.7]", "40.0 (+30.0)"]
    mean, low, high = found[accuracy, "GRPO"][0].translate(str.maketrans("[],", "   ")).split()
    assert (mean, float(low) < 50, float(high) > 70) == ("60.0", True, True), "Student's t"
    assert found[accuracy, "GRPO"][1] == "60.0 (+50.0)"
    assert found[figures, figures] == [
        "format, %",
        "length, tokens",
        "letter bias, %",
        "perplexity",
    ]
    assert found[figures, "SFT"] == ["100.0", "10.0", "60.0", "1.00"]
    assert found[figures, "GRPO"] == ["100.0", "15.0", "40.0", "1.00"]
    assert found["never trained on, strict, %", "SFT"] == ["MRI 40.0 [16.8, 68.7]"]
    assert found["arm", "SFT"] == ["2", "32", "256", "1, 3", "900", "94.00"]
    assert ("arm", "judged") not in found
    assert text.count("not medical data") == 2
    assert "a rule stands in for it. SFT: findings for semantic. GRPO:" in text
    assert "The paper: it got 50. No DPO." in text
    assert "judged: needs an expert model." in text


def test_a_base_is_listed_once_for_each_way_it_was_asked() -> None:
    scratch = arm({"base": (2, 10), "trained": (4, 10)}) | {"init": "base"}
    direct = arm({"base": (3, 10), "trained": (4, 10)}) | {"prompt": "direct"}
    plain = arm({"base": (1, 10), "trained": (4, 10)})
    arms = dict(zip(("SFT", "GRPO", "judged"), (plain, scratch, direct), strict=True))
    record = {"command": "python", "scale": "2b", "arms": arms}
    found = lines_of(page(record, TABLE))

    accuracies = {
        row: cells for (head, row), cells in found.items() if head == "strict accuracy, %"
    }
    shares = {row: cells[0].split()[0] for row, cells in accuracies.items()}
    assert [shares[row] for row in ("base", "base, scratch", "base, direct")] == [
        "10.0",
        "20.0",
        "30.0",
    ]
    assert list(shares)[2:] == ["base", "base, scratch", "base, direct", "SFT", "GRPO", "judged"]

"""What the thought before a forced choice says, and whether the choice follows it."""

from itertools import product

import pytest

from data.phantom import questions as phantom
from rewards.evaluation import text as render
from rewards.evaluation.scores import cell, follows
from rewards.evaluation.table import LINKS, tabulate, weakest_link
from rewards.rules import consistency_rule
from tests.rewards.evaluation.test_table import row

OPTIONS = {"side": ("left", "right"), "size": ("small", "large"), "presence": ("yes", "no")}
FINDING = "small cyst, upper left"
PARTS = ("kind", "quadrant", "side", "size")


def asked(i: int, kind: str, thought: str | None, chosen: str = "A", **fields) -> dict:
    """A question about an image with one finding, with the thought and the letter chosen."""
    choice = {"forced_reasoning": thought, "forced_answer": chosen, "forced_correct": chosen == "A"}
    shown = {"options": list(OPTIONS[kind]), "question_type": kind, "finding": FINDING}
    return row(i, False, **(choice | shown | fields))


def counts(share: dict) -> tuple[int, int]:
    return share["correct"], share["n"]


def test_thoughts_are_counted_by_hand():
    found = cell([
        asked(0, "side", "One lesion: small cyst, upper left.", "A"),
        asked(1, "side", "Large, right.", "A"),  # both wrong, and not followed
        asked(2, "size", "Something small.", "B"),  # no side, and not followed
        asked(3, "size", "Left or right? Large.", "B"),  # two sides are none; followed
        asked(4, "presence", "No idea.", "B"),  # neither; names its own "no"
        asked(5, "side", "left", "A", finding=None),  # unknown, or several; followed
    ])  # fmt: skip
    side, size, presence = (found["by_type"][name] for name in OPTIONS)
    assert [counts(side[key]) for key in ("stated", "right", "says")] == [(2, 5), (1, 2), (1, 5)]
    assert [counts(size[key]) for key in ("stated", "right", "says")] == [(4, 5), (2, 4), (2, 5)]
    assert presence["says"]["n"] == presence["stated"]["n"] == 0  # no part of the finding
    follow = [counts(part["follows"]) for part in (side, size, presence)]
    assert follow == [(2, 3), (1, 2), (1, 1)]
    assert counts(found["follows"]) == (4, 6)
    assert counts(side["forced_choice"]) == (3, 3)
    assert counts(side) == (0, 3)


def test_a_choice_follows_where_the_consistency_reward_says_so():
    words = ("left", "right", "upper left", "Upper-right.", "not", "")
    wrong, tried = [], 0
    for pair, options in product(
        product(words, words), (("left", "right"), ("upper left", "left"))
    ):
        thought, letters = " ".join(pair), ("A", "B")
        for letter in letters:
            given = row(0, True, options=options, forced_reasoning=thought, forced_answer=letter)
            said = f"<think>{thought}</think><answer>{letter}</answer>"
            (rule,) = consistency_rule([""], [said], letters=[letters], options=[options])
            tried += follows(given) is not None
            if follows(given) not in (None, rule) or (rule is None and follows(given) is not None):
                wrong.append((thought, options, letter, rule))
    assert wrong == []
    assert tried > 60


def thinking(examples: list, thought) -> list[dict]:
    """The row of each phantom question, with `thought` of its true report before the choice."""
    return [
        row(
            i, True, options=list(e.options), gold=e.letter, question_type=e.question_type,
            forced_answer=e.letter, forced_reasoning=thought(e.reasoning),
            finding=e.findings[0] if len(e.findings) == 1 else None,
        )
        for i, e in enumerate(examples)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def deck() -> list:
    return phantom.load("CT", split="val", size=240)


def test_of_a_phantom_the_parts_are_found_in_its_report(deck):
    by_type = cell(thinking(deck, lambda report: report))["by_type"]
    assert tuple(name for name, part in by_type.items() if part["says"]["n"]) == PARTS
    number = sum(len(e.findings) == 1 for e in deck)
    assert {counts(by_type[part]["says"]) for part in PARTS} == {(number, number)}
    assert {by_type[part]["follows"]["accuracy"] for part in PARTS} == {1.0}


def mirrored(report: str) -> str:
    return report.replace("left", "#").replace("right", "left").replace("#", "right")


def test_a_mirrored_report_is_wrong_in_the_parts_that_have_a_side(deck):
    by_type = cell(thinking(deck, mirrored))["by_type"]
    right = {part: by_type[part]["right"]["accuracy"] for part in PARTS}
    assert right == {"kind": 1.0, "quadrant": 0.0, "side": 0.0, "size": 1.0}
    assert by_type["side"]["follows"]["accuracy"] == 0.0


# What a thought says, the letter chosen for a side and for a size, and the sentence.
WEAKEST = (
    ("Large, upper left.", "A", "B", "on MRI the size stated is right in 0.0 % of 8."),
    ("Upper left.", "A", "A", "on MRI the size is stated in 0.0 % of 8."),
    ("Small, upper left.", "B", "A", "on MRI the side stated is chosen in 0.0 % of 4."),
)


def answers(thought: str | None, side: str, size: str) -> dict:
    rows = [asked(i, ("side", "size")[i % 2], thought, (side, size)[i % 2]) for i in range(8)]
    rows.append(asked(8, "presence", "No!", "A", finding=None))  # not followed, and no part
    return {"tests": {"MRI": rows}}


def test_the_sentence_names_the_weakest_link_of_the_trained_policy():
    base, wrong = answers("Nothing.", "B", "B"), []
    for *given, says in WEAKEST:
        table = tabulate({"base": base, "trained": answers(*given)}, "MRI")
        if table["rendered"]["footnotes"] != [f"Weakest link: {says}"]:
            wrong.append((given, table["rendered"]["footnotes"]))
    assert wrong == []
    alone = tabulate({"base": base}, "MRI")
    assert alone["verdicts"] == ["Weakest link: on MRI the side is stated in 0.0 % of 8."]


def test_the_table_shows_says_and_follows_by_type():
    trained = answers("Small, right.", "B", "B")
    table = tabulate({"base": answers("Nothing.", "A", "B"), "trained": trained}, "MRI")
    presence, side, size = table["rendered"]["parts"][1]["rows"]
    assert presence["cells"] == ["0→0 100→100 - 0"]
    assert side["cells"] == ["0→0 100→0 0 100"]
    assert size["cells"] == ["0→0 0→0 100 0"]
    assert size["full"] == ["0.0→0.0 0.0→0.0 100.0 0.0"]
    assert "base→trained; thought right, followed" in render.text(table)
    assert "| 0→0 100→0 0 100 |" in render.markdown(table)


def test_without_thoughts_or_findings_nothing_is_said_of_them():
    """Asked directly, answers without options, and rows of a version that kept neither."""
    direct = [asked(i, "side", None) for i in range(4)]
    opened = {"options": [], "forced_answer": None, "forced_correct": None}
    for rows in (direct, [asked(0, "side", "left", **opened)], [row(i, True) for i in range(4)]):
        found = cell(rows)
        assert found["follows"]["n"] == 0
        (part,) = found["by_type"].values()
        assert {part[link]["n"] for link in LINKS} == {0}
        assert weakest_link({"MRI": found}) == []

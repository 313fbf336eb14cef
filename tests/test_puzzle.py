"""tests/conformance/puzzle.py: the symptoms come first, the bug if it is asked for, in a copy."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.mutate import Mutation, every_mutation
from tests.conformance.puzzle import ask, function_at, hints, place, puzzles, revealed
from tests.conformance.symptoms import Symptom, read_list, symptoms
from tests.programs import ROOT, Program

KNOWN = {mutation.name: mutation for mutation in every_mutation()}
KL = KNOWN["KL by k1"]
GAVE_AWAY = [Symptom("kl, mean", -0.5, 0.1, 0.2)]
BUG = (KL.name, KL.new, KL.thread)


def checkout() -> tuple[dict[str, str], str]:
    """The checksum of every file, but for what Python and git keep; and what git says of them."""
    files = [f for f in ROOT.rglob("*") if f.is_file() and not {*f.parts} & {".git", "__pycache__"}]
    sums = {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    said = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return sums, said.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "flags"), [(0, []), (1, ["--reveal"])])
def test_a_puzzle_shows_symptoms_names_the_bug_only_if_asked_and_changes_nothing(seed, flags):
    before = checkout()
    words = ["tests/conformance/puzzle.py", "--seed", str(seed), *flags]
    done = Program(sys.executable, *words, where=ROOT).finish()
    assert done.returncode == 0, done.stderr
    assert checkout() == before
    shown, asked, _ = done.stdout.partition("\nWhere is the bug?")
    assert bool(asked) == (not flags)
    rows = puzzles(read_list())
    mutation = KNOWN[rows[seed % len(rows)]["name"]]
    for part in ("Outside the range", "2. A group of step 30", "3. train.py --explain"):
        assert part in shown
    assert "Traceback" not in done.stdout
    for secret in (f"The bug: {mutation.name}", *hints(place(mutation))):
        assert (secret in done.stdout) == bool(flags)
    assert (mutation.name in done.stdout) == bool(flags)


def test_the_list_has_puzzles_enough_and_each_can_be_put_in():
    record = read_list()
    rows = puzzles(record)
    assert len(rows) >= 25
    assert len({row["name"] for row in rows}) == len(rows)
    assert [KNOWN[row["name"]].misfit() for row in rows] == [""] * len(rows)
    assert len(record["sane"]) == 5
    assert all(row["outcome"] == "symptoms" for row in rows)
    assert {row["name"] for row in record["bugs"]} <= {*record["candidates"]} <= {*KNOWN}


def test_the_manual_counts_the_list():
    record = read_list()
    text = (ROOT / "tests/conformance/README.md").read_text("utf-8")
    assert f"lists {len(puzzles(record))} of the {len(record['candidates'])} bugs" in text


def test_ten_seeds_in_a_row_are_ten_puzzles():
    names = [row["name"] for row in puzzles(read_list())]
    assert len({*names[:10]}) == 10
    assert names == [row["name"] for row in puzzles(read_list())]


def test_hints_name_file_function_and_line_of_the_checkout():
    where = place(KL)
    text = (ROOT / "grpo/loss.py").read_text("utf-8").split("\n")
    assert (where.file, where.function) == ("grpo/loss.py", "k3_kl")
    assert text[where.line - 1].strip() == where.text == KL.old
    assert [one.split(" is ")[0] for one in hints(where)] == [
        "The file",
        "The function",
        "The line",
    ]
    assert function_at("x = 1\n\ndef f():\n    return 1\n", 1) == ""


def test_every_bug_has_a_place():
    for mutation in KNOWN.values():
        where = place(mutation)
        text = (ROOT / where.file).read_text("utf-8")
        start = text[: text.index(mutation.old)].count("\n") + 1
        assert start <= where.line <= start + mutation.old.count("\n"), mutation.name


@pytest.mark.parametrize(
    ("typed", "answers"),
    [
        (["quit", "hint"], []),
        (["hint", "quit"], ["The file is grpo/loss.py."]),
        (["hint"] * 4, [*hints(place(KL)), "No more hints: try reveal."]),
        (["grpo/loop.py"], ["No, it is not there."]),
        (["loss.py"], ["The file is right. Which function?"]),
        ([""], ["No, it is not there."]),
    ],
)
def test_guesses_and_hints_are_answered_without_the_bug(typed, answers):
    question, *said = ask(KL, GAVE_AWAY, typed)
    assert question.startswith("Where is the bug?")
    assert said == answers
    assert not [secret for secret in BUG if secret in "\n".join(said)]


def test_the_right_function_and_reveal_end_with_the_bug_and_its_thread():
    for typed, first in (("k3_kl in grpo/loss.py", ["Right."]), ("reveal", [])):
        _, *said = ask(KL, GAVE_AWAY, [typed, "quit"])
        assert said == [*first, *hints(place(KL)), *revealed(KL, GAVE_AWAY)]
        text = "\n".join(said)
        for part in (*BUG[:2], "trl#3029", "test_trl_3029_temperature_in_logprobs", "kl, mean"):
            assert part in text


def test_a_bug_outside_all_functions_is_found_by_its_file():
    bug = KNOWN["LoRA on q and v only"]
    _, *said = ask(bug, [], ["forward", "models/lora.py"])
    assert said[:3] == ["No, it is not there.", "Right.", "The file is models/lora.py."]
    assert said[3] == "It is in no function."


def test_a_bug_without_a_thread_names_the_tests_that_see_it():
    said = "\n".join(revealed(KNOWN["delta bounds nothing"], []))
    assert "No other project's thread" in said
    assert "tests/grpo/test_variants.py" in said


def test_a_symptom_lies_outside_the_range_by_more_than_two_widths():
    sane = [{"kl": [0.0, x]} for x in (0.4, 0.5, 0.6)]  # means 0.2 to 0.3
    cases = ((0.02, False), (0.98, False), (1.02, True), (-0.02, True), (float("nan"), True))
    for end, expected in cases:
        found = [one for one in symptoms({"kl": [0.0, end]}, sane) if one.figure == "kl, mean"]
        assert bool(found) == expected, end
    assert symptoms({"kl": [0.0, 9.0]}, sane, {"kl, mean", "kl, last 10 steps"}) == []
    assert len(symptoms({"kl": [0.0, 0.8]}, sane, widths=0.9)) == 2
    assert symptoms({"new": [9.0]}, sane) == []
    rounding = [{"kl": [1e-6, 1e-6]}] * 3
    assert symptoms({"kl": [2e-6, 0.0]}, rounding) == []
    assert json.dumps(symptoms({"kl": [1.0, 1.0]}, rounding)[0])[:15] == '["kl at step 1"'


def test_what_cannot_be_put_in_is_said(tmp_path: Path):
    assert "found 0 times" in Mutation("x", "", "grpo/loss.py", "not there", "").misfit()

"""The reward contract: what `--reward` builds, what a function may return, how it all adds up."""

import math
from pathlib import Path

import pytest

from data.example import columns as columns_of
from data.phantom import questions as phantom
from rewards.scoring import NEED_A_JUDGE, Reward, RewardError, built_in, parse_rewards, score

MANUAL = (Path(__file__).parents[2] / "rewards" / "README.md").read_text(encoding="utf-8")

SAID = [
    "<think>x</think><answer>B</answer>",  # in the format, right
    "<think>x</think><answer>A</answer>",  # in the format, wrong
    "<answer>cyst</answer>",  # right, not in the format
    "A or B",  # neither
]
PROMPTS = ["Which?"] * 4
COLUMNS = {
    "answer": ["B"] * 4,
    "letters": [("A", "B")] * 4,
    "options": [("none", "cyst")] * 4,
    "modality": ["MRI", "CT", "MRI", "CT"],
}


def write(folder: Path, source: str) -> Path:
    path = folder / "mine.py"
    path.write_text(source)
    return path


def test_the_total_is_the_weighted_sum_and_the_parts_are_unweighted():
    totals, parts = score(parse_rewards("format=0.5,accuracy=2"), PROMPTS, SAID, COLUMNS)
    assert parts == {"format": [1.0, 1.0, 0.0, 0.0], "accuracy": [1.0, 0.0, 1.0, 0.0]}
    assert totals == [2.5, 0.5, 2.0, 0.0]


def test_each_completion_is_judged_by_its_own_question():
    columns = COLUMNS | {"answer": ["A", "B"], "letters": ["AB", "ABC"]}
    columns |= {"options": [("x", "y"), ("x", "y", "z")], "modality": ["MRI", "CT"]}
    _, parts = score(parse_rewards("accuracy"), PROMPTS[:2], ["<answer>A</answer>"] * 2, columns)
    assert parts["accuracy"] == [1.0, 0.0]


def test_a_weight_is_1_where_none_is_given_and_may_be_0_or_negative():
    rewards = parse_rewards(" format , accuracy=-1e-1")
    assert [(r.name, r.weight) for r in rewards] == [("format", 1.0), ("accuracy", -0.1)]
    totals, parts = score(parse_rewards("format=0,accuracy"), PROMPTS, SAID, COLUMNS)
    assert totals == parts["accuracy"]


def test_a_users_function_gets_lists_by_name_and_its_none_is_left_out_of_the_sum(tmp_path):
    source = """
def mri_only(prompts, completions, modality, answer, **columns):
    assert len(prompts) == len(completions) == len(answer) and "options" in columns
    return [len(text) if kind == "MRI" else None for text, kind in zip(completions, modality)]
"""
    rewards = parse_rewards(f"format=1,{write(tmp_path, source)}:mri_only=0.5")
    assert rewards[1].name == "mri_only"
    totals, parts = score(rewards, PROMPTS, SAID, COLUMNS)
    assert parts["mri_only"] == [len(SAID[0]), None, len(SAID[2]), None]
    assert totals == [1 + 0.5 * len(SAID[0]), 1.0, 0.5 * len(SAID[2]), 0.0]
    assert all(isinstance(value, float) for value in totals)


def test_a_users_file_may_be_like_any_module_and_nothing_is_written_beside_it(tmp_path):
    source = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Bonus:
    size: float

async def paid(completions, **columns):
    return [Bonus(0.25).size] * len(completions)
"""
    rewards = parse_rewards(f"{write(tmp_path, source)}:paid")
    assert score(rewards, PROMPTS, SAID, COLUMNS)[0] == [0.25] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_numbers_of_other_libraries_will_do():
    numpy = pytest.importorskip("numpy")
    rewards = [Reward("array", lambda completions, **_: numpy.arange(4, dtype=numpy.float32))]
    assert score(rewards, PROMPTS, SAID, COLUMNS)[0] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "unknown reward ''; known: format, accuracy, accuracy-medvlm-r1, length-ecr"),
        ("none", "findings, f1, or path/to/file.py:function for your own"),
        ("format,", "unknown reward ''"),
        ("acuracy=1", "unknown reward 'acuracy'; known: format, accuracy"),
        ("format=", "reward 'format': weight '' is no number; write format=0.5"),
        ("format=much", "weight 'much' is no number"),
        ("format=1=2", "weight '1=2' is no number"),
        ("format=nan", "weight 'nan' is no number"),
        ("format=inf", "weight 'inf' is no number"),
        ("format,accuracy,format=2", "reward 'format' is there twice"),
        ("nowhere.py:paid", "reward 'paid': there is no file nowhere.py"),
        ("{folder}:paid", "there is no file"),
        ("{folder}/mine.py:unpaid", "reward 'unpaid': no such function in"),
        ("{folder}/mine.py:number", "reward 'number': no such function in"),
        ("{folder}/broken.py:paid", "SyntaxError"),
        ("{folder}/exits.py:paid", "exits.py, SystemExit(0)"),
        ("{folder}/raises.py:paid", "raises.py, ZeroDivisionError('division by zero')"),
        ("semantic", "reward 'semantic' needs a judge; add --judge URL --judge-model NAME, or --"),
        ("reasoning=2", "reward 'reasoning' needs a judge; add --judge URL --judge-model NAME, or"),
        ("correctness=0", "reward 'correctness' needs a judge; "),
        ("accuracy,similarity", "reward 'similarity' needs a judge; add --judge embed:FOLDER"),
    ],
)
def test_a_reward_that_cannot_be_built_says_so_in_one_line(spec, says, tmp_path):
    write(tmp_path, "number = 1\ndef paid(completions, **_): return [1.0] * len(completions)\n")
    (tmp_path / "broken.py").write_text("def paid(:\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(RewardError) as caught:
        parse_rewards(spec.format(folder=tmp_path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_known_may_be_given_and_replaces_what_is_built_in():
    def judged(completions, **columns):
        return [0.25] * len(completions)

    known = {**built_in(), "consistency": judged, "semantic": judged}
    rewards = parse_rewards("semantic,consistency=2,accuracy=0", known)
    assert [reward.function for reward in rewards[:2]] == [judged, judged]
    assert score(rewards, PROMPTS, SAID, COLUMNS)[0] == [0.75] * 4


def test_the_length_cap_reaches_both_length_rewards():
    said = ["<think>a b c d</think><answer>B</answer>"] * 4
    for cap, paid in ((8, 0.5), (2, 1.0)):
        rewards = parse_rewards("length-ecr,length-cwr", built_in(length_cap=cap))
        assert score(rewards, PROMPTS, said, COLUMNS)[0] == [2 * paid] * 4


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ("similarity", True),
        ("similarity,format", True),
        ("similarity=-1", True),
        ("similarity,accuracy=0", True),
        ("similarity,accuracy=-1", True),
        ("similarity,accuracy-medvlm-r1", True),
        ("similarity=0,format", False),
        ("accuracy=0.1,similarity=2", False),
        ("similarity,accuracy", False),
        ("{mine}:similarity", False),  # the user's own function of that name
    ],
)
def test_similarity_never_stands_without_accuracy(spec, refused, tmp_path):
    mine = write(tmp_path, "def similarity(completions, **_): return [1.0] * len(completions)\n")
    known = built_in() | {"similarity": lambda completions, **_: [1.0] * len(completions)}
    if refused:
        with pytest.raises(RewardError, match="'similarity' must not stand alone: opposite"):
            parse_rewards(spec, known)
    else:
        assert parse_rewards(spec.format(mine=mine), known)


def test_token_f1_never_stands_without_accuracy():
    with pytest.raises(RewardError, match="'f1' must not stand alone: naming two"):
        parse_rewards("format,f1")
    assert parse_rewards("format,f1,accuracy")


def test_open_questions_are_answered_in_words():
    said = ["<think>x</think><answer>The left lung.</answer>", "<answer>2</answer>", "left lung"]
    columns = {"answer": [""] * 3, "letters": [()] * 3, "options": [()] * 3}
    columns["references"] = [("left lung", "left"), ("two",), ("left lung",)]
    columns["asked"] = ["reason", "direct", "reason"]
    _, parts = score(parse_rewards("format,accuracy"), PROMPTS[:3], said, columns)
    assert parts == {"format": [1.0, 1.0, 0.0], "accuracy": [1.0, 1.0, 0.0]}
    del columns["references"]  # no answer is known to be right
    assert score(parse_rewards("accuracy"), PROMPTS[:3], said, columns)[0] == [0.0] * 3


def divides(completions, **columns):
    return [1 / 0]


def exits(completions, **columns):
    raise SystemExit(0)


def takes_a_column_that_is_not_there(completions, nonsense, **columns):
    return [1.0] * 4


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (divides, "raised ZeroDivisionError('division by zero'); it must take"),
        (exits, "raised SystemExit(0); it must take"),
        (takes_a_column_that_is_not_there, "missing 1 required positional argument"),
        (lambda completions, **_: None, "returned NoneType; return a list of 4 numbers"),
        (lambda completions, **_: 1.0, "returned float; return a list"),
        (lambda completions, **_: "1111", "returned str; return a list"),
        (lambda completions, **_: dict.fromkeys(completions, 1.0), "returned dict"),
        (lambda completions, **_: [1.0] * 3, "returned 3 values for 4 completions"),
        (lambda completions, **_: [], "returned 0 values for 4 completions"),
        (lambda completions, **_: [1.0, "1", 1.0, 1.0], "returned '1' for completion 1"),
        (lambda completions, **_: [1.0, 1.0, math.nan, 1.0], "returned nan for completion 2"),
        (lambda completions, **_: [-math.inf] * 4, "returned -inf for completion 0"),
        (lambda completions, **_: [1j] * 4, "returned 1j for completion 0"),
        (lambda completions, **_: [[1.0]] * 4, "returned [1.0] for completion 0"),
    ],
)
def test_a_function_that_breaks_the_contract_is_named_in_one_line(function, says):
    with pytest.raises(RewardError) as caught:
        score([Reward("mine", function)], PROMPTS, SAID, COLUMNS)
    assert str(caught.value).startswith("reward 'mine' ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_completion_to_which_no_reward_applies_is_an_error_and_not_a_zero():
    rewards = [Reward("mine", lambda completions, **_: [1.0, None, 0.0, None])]
    with pytest.raises(RewardError, match="no reward applies to completion 1"):
        score(rewards, PROMPTS, SAID, COLUMNS)
    assert score([*rewards, *parse_rewards("format")], PROMPTS, SAID, COLUMNS)[0] == [2, 1, 0, 0]


def test_a_missing_verdict_is_neither_better_nor_worse_than_its_group():
    judged = [Reward("semantic", lambda completions, **_: [1.0, None, 0.0, None])]
    groups = COLUMNS | {"id": ["a", "a", "a", "b"]}
    assert score(judged, PROMPTS, SAID, groups)[0] == [1.0, 0.5, 0.0, 0.0]
    nothing = [Reward("semantic", lambda completions, **_: [None] * 4)]
    with pytest.raises(RewardError, match="no reward applies to completion 0"):
        score(nothing, PROMPTS, SAID, groups)


def test_columns_out_of_step_with_the_completions_are_refused():
    with pytest.raises(RewardError, match="answer: 3 entries for 4 completions"):
        score(parse_rewards("format"), PROMPTS, SAID, COLUMNS | {"answer": ["B"] * 3})
    with pytest.raises(RewardError, match="prompts: 1 entries for 4 completions"):
        score(parse_rewards("format"), PROMPTS[:1], SAID, COLUMNS)


def test_a_column_of_the_data_never_replaces_the_texts_of_the_model():
    foreign = {"completions": ["<answer>B</answer>"] * 4, "prompts": ["x"] * 4}
    rewards = parse_rewards("format,accuracy")
    expected = score(rewards, PROMPTS, SAID, COLUMNS)
    assert score(rewards, PROMPTS, SAID, COLUMNS | foreign) == expected
    own = Reward("own", lambda prompts, **_: [float(text == "Which?") for text in prompts])
    assert score([own], PROMPTS, SAID, COLUMNS | foreign)[0] == [1.0] * 4


def test_scoring_nothing_gives_nothing():
    assert score(parse_rewards("format"), [], [], {"letters": []}) == ([], {"format": []})


def test_a_reward_names_the_column_that_it_lacks():
    known = {name: column for name, column in COLUMNS.items() if name != "options"}
    with pytest.raises(RewardError, match=r"'accuracy' raised TypeError.*missing column 'options'"):
        score(parse_rewards("accuracy"), PROMPTS, SAID, known)


def test_the_manual_names_every_reward_and_column_and_its_function_works(tmp_path):
    cells = "".join(line.split("|")[1] for line in MANUAL.splitlines() if line.startswith("| `"))
    columns = columns_of(phantom.load("MRI", split="test", size=4))
    names = {*built_in(), *NEED_A_JUDGE, "prompts", "completions", "completion_ids", *columns}
    assert sorted(name for name in names if f"`{name}`" not in cells) == []

    source = MANUAL.split("```python\n")[1].split("```")[0]
    rewards = parse_rewards(f"{write(tmp_path, source)}:brevity=2")
    assert score(rewards, PROMPTS, ["", "x" * 250, "x" * 500, "x" * 501], columns)[0] == [
        2,
        1,
        0,
        0,
    ]

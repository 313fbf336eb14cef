"""Each reward by rule, by a table of completions and what they earn, counted by hand."""

import pytest

from data.phantom import questions as phantom
from grpo.settings.config import Config
from rewards.rules import findings_reward
from rewards.scoring import built_in
from train import open_rewards

SIDES = ("left", "right")
QUADRANTS = ("upper left", "upper right", "lower left", "left")


def value(name, text, cap=8, **question):
    """What the named reward gives for one completion."""
    columns = {"answer": "B", "letters": ("A", "B"), "options": SIDES, "references": ("right",)}
    columns |= {"findings": None, "asked": "reason"} | question
    lists = {column: [entry] for column, entry in columns.items()}
    (paid,) = built_in(cap)[name](prompts=["Which side?"], completions=[text], **lists)
    return paid


def think(reasoning, answer="B"):
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


OPEN = {"answer": "", "letters": (), "options": (), "references": ("left lung", "left")}


@pytest.mark.parametrize(
    ("text", "question", "paid"),
    [
        ("<answer>B</answer>", {}, 1.0),
        (think("x", " b\n"), {}, 1.0),
        (think("x", "(B)"), {}, 0.5),
        (think("x", "B) right"), {}, 0.0),  # the g of right counts as a letter
        (think("x", "A"), {}, 0.0),
        (think("x", "A or B"), {}, 0.0),
        ("<answer>B</answer><answer>A</answer>", {}, 1.0),  # the first block counts, as published
        ("B", {}, 0.0),
        (think("x"), {"asked": "direct"}, 1.0),
        (think("x", "left"), OPEN, None),
    ],
)
def test_medvlm_r1s_accuracy_is_theirs_and_for_closed_questions(text, question, paid):
    assert value("accuracy-medvlm-r1", text, **question) == paid


LENGTHS = [  # of 8 words
    ("", 0 / 8),
    ("one", 1 / 8),
    ("one two", 2 / 8),
    ("one two three four", 4 / 8),
    ("a b c d e f g h", 1.0),
    ("a b c d e f g h i j", 1.0),  # no more than the cap
    ("spot spot spot spot spot", 3 / 8),  # two words, and (spot spot spot) once
    ("a b a b a b a b", 4 / 8),  # two words, (a b a) and (b a b)
    ("a b c a b c a b c", 5 / 8),  # two words and three different threes
    ("Bright spot. bright SPOT, bright; spot", 4 / 8),  # as a b a b a b
    ("bright-rim", 2 / 8),
    ("aaaaaaaaaaaaaaaaaaaaaaaaaaaa", 1 / 8),
    ("... --- !!!", 0.0),
]


@pytest.mark.parametrize(("reasoning", "paid"), LENGTHS)
def test_length_is_paid_by_the_word_that_is_no_repetition(reasoning, paid):
    assert value("length-ecr", think(reasoning)) == paid
    assert value("length-ecr", think(reasoning, "A")) == paid
    assert value("length-ecr", reasoning) == paid  # cut off before the answer
    assert value("length-cwr", think(reasoning)) == paid
    assert value("length-cwr", think(reasoning, "A")) == 0.0
    assert value("length-cwr", reasoning) == 0.0


@pytest.mark.parametrize(
    ("text", "question", "ecr", "cwr"),
    [
        (think("a b c d"), {"asked": "direct"}, None, None),
        (think("a b c d"), {"asked": "explain"}, 0.5, 0.5),
        (think("a b c d", "right"), {}, 0.5, 0.5),
        (think("a b c d", "A or B"), {}, 0.5, 0.0),
        (think("a b c d", "The left lung."), OPEN, 0.5, 0.5),
        (think("a b c d", "heart"), OPEN, 0.5, 0.0),
        (think("a b", "B") + " c d e f g h", {}, 0.25, 0.25),  # what follows is no reasoning
        ("<answer>B</answer> a b c d e f g h", {}, 0.0, 0.0),
    ],
)
def test_length_counts_reasoning_where_it_was_asked_for(text, question, ecr, cwr):
    assert value("length-ecr", text, **question) == ecr
    assert value("length-cwr", text, **question) == cwr


@pytest.mark.parametrize(
    ("text", "question", "paid"),
    [
        (think("It lies right."), {}, 1.0),
        (think("It lies RIGHT", "right"), {}, 1.0),
        (think("It lies left."), {}, 0.0),
        (think("Not left, so right."), {}, 1.0),
        (think("Right, not left."), {}, 0.0),  # the rule is blind to this, as it says
        (think("Left or right? Left.", "A"), {}, 1.0),
        (think("It is bright."), {}, None),  # no whole word
        (think(""), {}, None),
        (think("So B."), {}, None),
        (think("Right.", "A or B"), {}, 0.0),
        (think("Right.", ""), {}, 0.0),
        ("<think>Right.", {}, 0.0),
        ("<answer>B</answer> right", {}, None),  # said too late
        (think("Upper left.", "A"), {"letters": tuple("ABCD"), "options": QUADRANTS}, 1.0),
        (think("Upper left.", "D"), {"letters": tuple("ABCD"), "options": QUADRANTS}, 0.0),
        (think("To the left.", "D"), {"letters": tuple("ABCD"), "options": QUADRANTS}, 1.0),
        (think("The cyst wall."), {"options": ("cyst", "cyst wall")}, 1.0),
        (think("The cyst wall.", "A"), {"options": ("cyst", "cyst wall")}, 0.0),
        (think("Two lesions."), {"options": ("one", "2")}, 1.0),
        (think("The cyst."), {"options": ("A mass", "A cyst.")}, 1.0),
        (think("Is it (a+)?"), {"options": ("(a+)+", "a+")}, 1.0),  # no pattern, but a text
        (think("Left."), {"options": ("", "left")}, 1.0),
        (think("Left."), {"options": ("left", "left")}, 1.0),
        (think("Right."), {"asked": "direct"}, None),
        (think("Left.", "left"), OPEN, None),
    ],
)
def test_the_answer_follows_from_the_option_that_was_mentioned_last(text, question, paid):
    assert value("consistency", text, **question) == paid


CYST, ABSCESS = "small cyst, upper left", "large abscess, lower left"


@pytest.mark.parametrize(
    ("reasoning", "true", "paid"),
    [
        (f"One lesion: {CYST}.", (CYST,), 1.0),
        (f"Two lesions: {CYST}; {ABSCESS}.", (CYST, ABSCESS), 1.0),
        (f"Two lesions:\n{ABSCESS}\n{CYST}", (CYST, ABSCESS), 1.0),  # in any order
        ("Upper left SMALL-CYST", (CYST,), 1.0),
        (f"{CYST}.", (CYST, ABSCESS), 2 / 3),  # 2 * 1 / (1 + 2)
        (f"{CYST}; {ABSCESS}.", (CYST,), 2 / 3),  # 2 * 1 / (2 + 1)
        ("large cyst, upper left.", (CYST,), 3 / 4),  # 3 words of 4 and 4
        ("large abscess, lower right.", (CYST,), 0.0),
        ("cyst", (CYST,), 1 / 4),  # 1 word of 4
        (f"{CYST}; {CYST}.", (CYST,), 2 / 3),
        (f"{CYST}; large cyst, upper left.", (CYST, ABSCESS), 3 / 4),  # 1 + 1/2; * 2 / 4
        (f"large cyst, upper left; {CYST}.", (CYST, ABSCESS), 3 / 4),  # the best pair first
        (f"{CYST}. The answer is B.", (CYST,), 2 / 3),
        (f"No lesion. {CYST}.", (CYST,), 2 / 3),
        ("No lesion.", (CYST,), 0.0),
        (f"There is no {CYST}.", (CYST,), 0.0),
        (f"not a {CYST}", (CYST,), 0.0),
        ("", (CYST,), 0.0),
        ("One lesion:", (CYST,), 0.0),
        ("1.5 cm cyst", ("1.5 cm cyst",), 1.0),
        ("No lesion.", (), 1.0),
        ("None", (), 1.0),
        ("Findings: there are no lesions. No oedema.", (), 1.0),
        (f"No lesion. {CYST}.", (), 0.0),
        ("Not sure.", (), 0.0),  # a doubt, and no denial of findings
        ("No idea.", (), 0.0),
        ("Without doubt.", (), 0.0),
        ("Normal.", (), 0.0),
        ("Note the nodule.", (), 0.0),  # begins with "no", the letters
        ("", (), 0.0),
        ("No lesion.", ("no lesion",), 1.0),  # true findings that are denials
        (f"{CYST}; no oedema", (CYST, "no oedema"), 1.0),
        ("No lesion.", None, None),
    ],
)
def test_findings_are_matched_one_to_one(reasoning, true, paid):
    assert value("findings", think(reasoning), findings=true) == pytest.approx(paid)
    assert value("findings", think(reasoning), findings=true, asked="direct") is None
    assert value("findings", reasoning, findings=true) == pytest.approx(paid)  # never answered


def test_no_more_clauses_are_compared_than_a_report_has_and_all_are_counted():
    assert value("findings", "x. " * 63 + CYST, findings=(CYST,)) == pytest.approx(2 / 65)
    assert value("findings", "x. " * 64 + CYST, findings=(CYST,)) == 0.0


@pytest.mark.parametrize("modality", phantom.MODALITIES)
@pytest.mark.parametrize("variant", phantom.VARIANTS)
def test_the_reference_reasoning_of_every_phantom_states_all_findings(modality, variant):
    examples = phantom.load(modality, split="test", size=280, variant=variant)
    said = [example.completion(example.reasoning) for example in examples]
    columns = {"findings": [example.findings for example in examples]}
    assert findings_reward(said, said, **columns) == [1.0] * 280

    columns = {"letters": [e.letters for e in examples], "options": [e.options for e in examples]}
    consistent = built_in()["consistency"](said, said, **columns)
    assert set(consistent) == {1.0, None}  # never blamed for a right answer
    assert consistent.count(1.0) > 140


@pytest.mark.parametrize(
    ("text", "question", "paid"),
    [
        (think("x", "left lung"), OPEN, 1.0),
        (think("x", "The left."), OPEN, 1.0),
        (think("x", "left side"), OPEN, 2 / 3),  # of "left": 1 word of 2 and 1
        (think("x", "left upper lung"), OPEN, 4 / 5),  # of "left lung": 2 of 3 and 2
        (think("x", "left " * 9), OPEN, 2 / 10),
        (think("x", "heart"), OPEN, 0.0),
        (think("left lung", ""), OPEN, 0.0),
        (think("x", "left") * 2, OPEN, 0.0),  # two answers
        ("left lung", OPEN, 0.0),
        ("<answer>left</answer>", OPEN | {"asked": "direct"}, 1.0),
        (think("x", "left"), OPEN | {"references": ()}, 0.0),
        (think("x", "right"), {}, None),
    ],
)
def test_f1_is_for_open_questions(text, question, paid):
    assert value("f1", text, **question) == pytest.approx(paid)


def test_overlong_charges_the_last_tokens_and_a_fifth_of_the_longest_by_default():
    ids = [range(n) for n in (0, 40, 50, 59, 60, 70)]
    paid = built_in(100, 60, 20)["overlong"](["?"] * 6, [""] * 6, completion_ids=ids)
    assert paid == [0.0, 0.0, -0.5, -0.95, -1.0, -1.0]
    for longest, cache in ((60, 12), (3, 1)):
        ids = [range(n) for n in range(longest + 2)]
        given, default = (
            built_in(100, longest, c)["overlong"](
                ["?"] * len(ids), [""] * len(ids), completion_ids=ids
            )
            for c in (cache, None)
        )
        assert given == default
        assert (given[longest - cache], given[longest]) == (0.0, -1.0)


def test_training_hands_the_token_ids_to_overlong_and_to_a_users_function(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def first(prompts, completions, completion_ids, **columns):\n"
        "    return [float(ids[0]) for ids in completion_ids]\n"
    )
    spec = f"overlong=2,{tmp_path / 'mine.py'}:first"
    config = Config(reward=spec, max_completion_length=10, overlong_cache=4)
    _, reward = open_rewards(config)
    questions = phantom.load("MRI", split="test", size=3)
    totals, parts = reward(questions, ["x"] * 3, [[7] * 6, [8] * 8, [9] * 10])
    assert parts == {"overlong": [0.0, -0.5, -1.0], "first": [7.0, 8.0, 9.0]}
    assert totals == [7.0, 7.0, 7.0]

"""--keep: training on the questions whose pass rate lies between two shares."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.load import load_split
from data.training_questions import load_questions
from grpo.settings.config import Config
from grpo.settings.errors import UsageError

SIZES = {"train_size": 20, "val_size": 0, "eval_size": 0}
EXAMPLES = load_split(Config(**SIZES), "train", 20)


def written(file: Path, examples: list[Any], n: int = 16) -> str:
    """A file in which question i is answered right i times of n, as often as there are answers."""
    facts = [{"id": e.id, "question": e.question, "n": n} for e in examples]
    rows = [fact | {"correct": min(i, n), "totals": []} for i, fact in enumerate(facts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def kept(file: str | None, keep: str | None, **more: Any) -> list[Any]:
    config = Config(pass_rates=file, keep=keep, **{**SIZES, **more})
    return load_questions(config, lambda *_: "")[0]


def test_both_ends_are_kept_and_the_order_is_that_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "p.jsonl", EXAMPLES)
    assert kept(file, "0.05,0.95") == EXAMPLES[1:16]
    assert capsys.readouterr().err == "train.py: --keep 0.05,0.95: 15 of 20 questions\n"
    assert kept(file, "0.25,0.5") == EXAMPLES[4:9]
    assert kept(file, "0,1") == EXAMPLES
    assert kept(file, "0.05,0.95", blind=True)[0].images == ()


def test_more_questions_in_the_file_than_in_training_do_no_harm(tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", load_split(Config(), "train", 40))
    assert kept(file, "0,0.25") == EXAMPLES[:5]


def test_what_is_wrong_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    good, other, few, broken, foreign, zero, deep = (tmp_path / f"{i}.jsonl" for i in range(7))
    written(good, EXAMPLES)
    written(other, load_split(Config(data_seed=1), "train", 20))
    written(few, EXAMPLES[:17])
    broken.write_text('{"id": "a"\n')
    foreign.write_text('[1, 2]\n"text"\n')
    zero.write_text(json.dumps({"id": "a", "question": "?", "n": 0, "correct": 0}))
    deep.write_text("[" * 100_000)
    shares = "give a file of evaluate.py, and two shares LOW,HIGH"
    for file, keep, problem in (
        (other, "0,1", f"lacks 20 of 20 training questions, {EXAMPLES[0].id} first; make it of"),
        (few, "0,1", f"lacks 3 of 20 training questions, {EXAMPLES[17].id} first; make it of the"),
        (good, "0.96,0.99", "keeps none of 20 training questions; use --keep 0,1"),
        (good, "0.9,0.1", "keeps none of 20 training questions; use --keep 0,1"),
        (good, "5", shares),
        (good, "0.05,0.5,0.95", shares),
        (good, "low,high", shares),
        (good, None, shares),
        (None, "0.05,0.95", shares),
        (tmp_path / "none.jsonl", "0,1", shares),
        (tmp_path, "0,1", shares),
        (broken, "0,1", shares),
        (foreign, "0,1", shares),
        (zero, "0,1", shares),
        (deep, "0,1", shares),
    ):
        with pytest.raises(UsageError) as error:
            kept(str(file) if file else None, keep)
        assert str(error.value).startswith(f"--pass-rates {file} --keep {keep}: ")
        assert problem in str(error.value)
        assert "\n" not in str(error.value)


def test_a_question_of_the_same_id_with_other_words_is_another(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    written(file, EXAMPLES)
    file.write_text(file.read_text().replace("Is there a lesion", "Is there no lesion"))
    with pytest.raises(UsageError, match="lacks 4 of 20 training questions"):
        kept(str(file), "0,1")

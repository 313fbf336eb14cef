"""The report's tables show what evaluate.py writes, means over seeds among it."""

import json
import re
from html import unescape

from grpo.report import evaluation_table as sheets
from grpo.report.curves import ticks
from grpo.report.page import page
from rewards.evaluation import text as render
from rewards.evaluation.rows import measured, rendered
from rewards.evaluation.table import over_seeds, tabulate
from tests.grpo.report.runs import cell, make_run, summary
from tests.rewards.evaluation.test_table import answers, rows


def sheet(table: dict) -> dict:
    """The sheet of a table whose figures were changed by hand."""
    return sheets.evaluation("e.json", table | {"rendered": rendered(table)})


def rows_of(table: dict) -> dict[str, list[str]]:
    return {row["name"]: row["full"] for row in sheet(table)["parts"][0]["rows"]}


def test_means_over_seeds_stand_by_the_way_of_asking() -> None:
    table = summary()
    for model, accuracy in (("grpo-2", 0.6), ("trained, direct", 0.5), ("grpo-2, direct", 0.3)):
        table["results"][model] = {m: cell(accuracy) for m in table["chance"]}
        table["ood_mean"][model] = {"accuracy": accuracy, "ci95": [0.2, 0.7]}
    table["seeds"] = over_seeds(table, ["trained", "grpo-2"])
    rows = rows_of(table)

    assert rows["mean of 2 seeds"][0].startswith("66.0 [")  # of 0.72 and 0.6
    assert rows["mean of 2 seeds, direct"][0].startswith("40.0 [")


def test_what_evaluate_py_says_of_a_blind_control_is_said_here() -> None:
    arms = {"tests": {"MRI": rows(150, 200)}, "blank_image": {"MRI": rows(148, 200)}}
    made = tabulate({"base": {"tests": {"MRI": rows(90, 200)}}, "trained": arms}, "MRI")
    table = json.loads(json.dumps(made))
    (sentence,) = sheets.evaluation("e.json", table)["footnotes"]

    assert sentence == (
        "MRI: with a blank image it scores 74.0; trained's 75.0 there says little about seeing."
    )
    assert sentence in render.text(table)


def test_a_control_tells_of_constant_answers_apart() -> None:
    table = summary()
    prior = {m: cell(0.3) for m in ("MRI", "CT", "XRAY")}
    prior["MRI"]["constant"] = cell(1.0, 16)
    table["controls"]["trained"]["options_prior"] = prior

    assert rows_of(table)["constant answers there"] == ["100.0", "-", "-"]
    assert "constant answers there" not in rows_of(summary())


def test_a_perplexity_is_no_share_whatever_it_is_of() -> None:
    figures = {"perplexity": 1.25, "open perplexity": 3.5, "reasoning": 0.5}
    rows = rows_of(
        summary() | {"metrics": {"trained": dict.fromkeys(summary()["chance"], figures)}}
    )

    assert rows["perplexity"][0] == "1.25"
    assert rows["open perplexity"][0] == "3.50"
    assert rows["reasoning"][0] == "50.0"


def test_the_page_shows_every_row_of_the_table_in_its_order(tmp_path) -> None:
    given, priors = answers(150, 148, 0.5)
    table = json.loads(json.dumps(tabulate(given, "MRI", priors, {"MRI": (3, 9)})))
    run = make_run(tmp_path / "run", traced=())
    (run / "summary.json").unlink()
    (run / "evaluation.json").write_text(json.dumps(table))
    figures = re.findall(r'<table class="figures">(.*?)</table>', page(run, 4_000_000), re.DOTALL)
    shown = []
    for found in re.findall(r'<tr class="\w*">(.*?)</tr>', "".join(figures)):
        name, *cells = map(unescape, re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", found))
        shown.append((name, [cell for cell in cells if cell]))

    expected = [
        (row["name"], row["full"]) for part in table["rendered"]["parts"] for row in part["rows"]
    ]
    assert shown == expected
    assert len(shown) > 20


def test_the_file_of_an_older_version_has_its_drawing_and_says_what_is_missing() -> None:
    table = summary()
    del table["rendered"]
    found = sheets.evaluation("e.json", table)

    assert found["parts"] == []
    assert "evaluate.py scores the run again" in found["footnotes"][0]
    assert found["footnotes"][1].startswith("XRAY: with a blank image")
    bars = list(map(measured, found["bars"][:2]))
    assert bars == ["10.0 [4.0, 16.0]", "72.0 [66.0, 78.0]"]


def test_the_page_draws_calibration_and_shows_recall_and_pass_at_k(tmp_path) -> None:
    logprobs = {"letter_logprobs": [-0.1, -2.4]}
    given = {
        model: {
            "tests": {"MRI": [row | logprobs for row in rows(right, 40)]},
            "samples": {"MRI": [row | {"answers": ["A", "B"] * 2} for row in rows(0, 40)]},
        }
        for model, right in (("base", 20), ("trained", 30))
    }
    table = json.loads(json.dumps(tabulate(given, "MRI")))
    run = make_run(tmp_path / "run", traced=())
    (run / "summary.json").unlink()
    (run / "evaluation.json").write_text(json.dumps(table))
    text = page(run, 4_000_000)

    found = [table["calibration"][model]["MRI"] for model in ("base", "trained")]
    assert '<polyline class="l0" points="44,168 372,22"/>' in text  # perfect calibration
    highest = ticks(0, max(one["curve"][0][1] for one in found))[-1]
    for colour, one in enumerate(found):
        (bin,) = one["bins"]  # equal confidences share a bin
        point = f"{44 + 328 * bin['confidence']:.4g},{168 - 146 * bin['accuracy']:g}"
        assert f'<polyline class="l{colour + 1}" points="{point}"/>' in text
        (whole,) = one["curve"]
        point = f"372,{168 - 146 * whole[1] / highest:.4g}"
        assert f'<polyline class="l{colour}" points="{point}"/>' in text
    shares = re.findall(r"<td>([^<]*)</td>", text[text.index('<table class="figures recall">') :])
    recall = table["recalls"]["trained"]["MRI"]["side"]["strict"]["recall"]["left"]
    assert measured(recall) in shares
    guesses = re.search(r"guessing</th>(.*?)</tr>", text)[1]
    assert re.findall(r"[\d.]+", guesses) == ["50.0", "75.0", "93.8"]
    assert "+0.0 [-6.6, +6.6]" in text

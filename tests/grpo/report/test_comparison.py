"""The page of several runs: curves over each other, paired differences, settings that differ."""

import json
import re
import shutil
from itertools import pairwise
from math import comb, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from grpo.report import page as report
from grpo.report.comparison import answers, comparison
from grpo.report.contents import contents
from grpo.report.curves import logged, overlaid
from grpo.run.atomic import write_json
from grpo.settings.errors import UsageError
from tests.grpo.report.browser import PROGRAM, Browser
from tests.grpo.report.pages import Page, hostile_run
from tests.grpo.report.runs import make_run, summary

MB = 1_000_000
MARKUP = "<img src=x onerror=window.pwned=1>"


def question(i: int, right: bool, forced: bool | None = None, **changed: Any) -> dict[str, Any]:
    """A row of predictions/ as evaluate.py writes it, with its own image."""
    forced = right if forced is None else forced
    asked = {"id": f"q{i}", "image": [f"image {i}"], "question": f"Which side of {i}?"}
    asked |= {"options": ["left", "right"], "gold": "A", "closed": True}
    return asked | {"correct": right, "forced_correct": forced} | changed


def write_answers(run: Path, rows: list[dict[str, Any]], arm: str = "MRI-reason") -> None:
    (run / "predictions").mkdir(exist_ok=True)
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (run / f"predictions/trained-{arm}.jsonl").write_text(text)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three finished runs that differ in seed and learning rate."""
    settings = ({}, {"seed": 7}, {"seed": 7, "learning_rate": 0.5})
    return [
        make_run(tmp_path / name, traced=(), **changed)
        for name, changed in zip(("a", "b", "c"), settings, strict=True)
    ]


def table(text: str, modality: str) -> dict[str, list[str]]:
    """The rows of the table of a modality by their first cell."""
    part = text[text.index(f"<h3>{modality}</h3>") :].partition("</table>")[0]
    rows = re.findall('<th scope="row">(.*?)</th>(.*?)</tr>', part)
    return {name: re.findall("<td>(.*?)</td>", cells) for name, cells in rows}


def test_each_run_has_a_line_with_a_dash_and_a_mark_of_its_own(runs: list[Path]) -> None:
    text = report.page(runs, 4 * MB)
    figure = text[text.index("<b>Reward: reward</b>") :].partition("</figure>")[0]
    lines = re.findall(r'<polyline class="(l\d)"', figure)
    marks = re.findall(r'<use href="#(m\d)" class="(l\d)" x="([\d.]+)"', figure)

    assert len(set(lines)) == 3
    assert {(mark, line) for mark, line, _ in marks} == {("m0", "l0"), ("m1", "l1"), ("m2", "l2")}
    where = [{x for _, line, x in marks if line == name} - {"15"} for name in lines]
    assert all(len(places) >= 5 for places in where)
    assert not where[0] & where[1] | where[1] & where[2]  # no mark hides another of a long curve
    assert re.findall(r"</svg>([^<]+) <b>", figure) == ["a", "b", "c"]


def test_a_chart_holds_the_numbers_of_every_run_that_logged_them() -> None:
    steps = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 1.0, "val/CT/accuracy": 0.25}]
    other = [{"step": 1, "kl": 0.1, "val/accuracy": 0.75}]
    drawn = {
        c["title"]: c["lines"]
        for c in overlaid({"a": logged(steps, "MRI"), "b": logged(other, "CT")})
    }
    found = {title: [(x["name"], x["points"]) for x in lines] for title, lines in drawn.items()}

    assert found == {
        "Accuracy by modality: CT": [("a", [(2, 0.25)]), ("b", [(1, 0.75)])],
        "Reward: reward": [("a", [(1, 0.5), (2, 1.0)])],
        "KL to the reference": [("b", [(1, 0.1)])],
    }


def test_more_lines_than_colours_still_differ(tmp_path: Path) -> None:
    run = make_run(tmp_path / "0", steps=1, traced=())
    runs = [run, *(Path(shutil.copytree(run, tmp_path / str(i))) for i in range(1, 8))]
    text = report.page(runs, 4 * MB)
    legend = text[text.index("<b>Loss</b>") :].partition("</figure>")[0].partition("<ul")[2]
    styles = re.findall(r'<line class="(l\d)".*?<use href="#(m\d)"', legend)

    assert len(set(styles)) == len(styles) == 8


def test_differences_are_paired_over_the_questions_of_both_runs(runs: list[Path]) -> None:
    """Against McNemar's p and Bonett and Price's interval written out."""
    before = [question(i, i % 3 == 0) for i in range(40)]
    after = [question(i, i % 3 == 0 or i > 30, forced=i % 2 == 0) for i in range(40)]
    write_answers(runs[0], [*before, question(90, True), question(91, True)])
    changed = question(91, False, question="Which side is it?")
    write_answers(runs[1], [changed, *reversed(after), question(92, False)])
    rows = table(report.page(runs[:2], 4 * MB), "MRI")

    for name, key in (("strict", "correct"), ("forced choice", "forced_correct")):
        changes = [int(b[key]) - int(a[key]) for a, b in zip(before, after, strict=True)]
        gained, lost = changes.count(1), changes.count(-1)
        up, down = (gained + 1) / 42, (lost + 1) / 42
        half = 1.959964 * sqrt((up + down - (up - down) ** 2) / 42)
        bounds = [100 * x for x in (fmean(changes), up - down - half, up - down + half)]
        n = gained + lost
        p = min(1, 2 * sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n)
        said = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*bounds)
        assert rows[f"trained minus a, {name}"] == ["-", f"{said}, p {p:.1g}, n 40"]


def test_an_image_that_has_changed_is_no_pair(runs: list[Path]) -> None:
    write_answers(runs[0], [question(i, True, image_sha256=["old"]) for i in range(9)])
    rows = [question(i, False, image_sha256=["new" if i else "old"]) for i in range(9)]
    write_answers(runs[1], rows)

    (none, one) = table(report.page(runs[:2], 4 * MB), "MRI")["trained minus a, strict"]
    assert (none, one[-4:]) == ("-", " n 1")


def test_the_answers_are_those_of_the_evaluation_that_is_shown(runs: list[Path]) -> None:
    """Of its first way of asking, as its scorer reads them: it takes the first of two answers."""
    shown = summary() | {"prompt": "direct", "scorer": "medvlm-r1"}
    for run, said in zip(runs[:2], ("B", "A"), strict=True):
        write_json(run / "evaluation.json", shown)
        write_answers(run, [question(i, True) for i in range(4)])
        changed = {"completion": f"<answer>{said}</answer><answer>B</answer>"}
        write_answers(run, [question(i, False, **changed) for i in range(9)], "MRI-direct")
    (_, cell) = table(report.page(runs[:2], 4 * MB), "MRI")["trained minus a, strict"]
    assert (cell[:7], cell[-5:]) == ("+100.0 ", ", n 9")


def test_a_damaged_line_costs_no_other_answer(runs: list[Path]) -> None:
    write_answers(runs[0], [question(i, True) for i in range(9)])
    (file,) = runs[0].glob("predictions/*")
    lines, found = file.read_bytes().splitlines(), {}
    for damaged in (b"{", b"[1]", b'{"id": "q4"}', b"\0\0", b"\xff", b""):
        file.write_bytes(b"\n".join([*lines[:4], damaged, *lines[5:]]))
        found[damaged] = len(answers(contents(runs[0]), "MRI"))
    assert {damaged: n for damaged, n in found.items() if n != 8} == {}


def test_n_counts_the_closed_questions_that_the_gain_is_of(runs: list[Path]) -> None:
    opened = [question(i, True, options=[], closed=False, forced_correct=None) for i in (5, 6)]
    for run in runs[:2]:
        write_answers(run, [question(i, run is runs[1]) for i in range(5)] + opened)
    rows = table(report.page(runs[:2], 4 * MB), "MRI")
    cells = [rows[f"trained minus a, {name}"][1] for name in ("strict", "forced choice")]
    assert [(cell[:7], cell[-5:]) for cell in cells] == [("+100.0 ", ", n 5")] * 2


def test_only_scored_runs_are_told_in_order_that_they_share_nothing(runs: list[Path]) -> None:
    (runs[1] / "summary.json").unlink()
    said = [text for text in comparison(runs)["remarks"] if "share no answered" in text]
    pairs = [text.partition(" share")[0] for text in said]
    assert pairs == [f"{modality}: a and c" for modality in ("MRI", "CT", "XRAY")]


def test_runs_of_other_questions_are_told_so_and_not_paired(runs: list[Path]) -> None:
    write_answers(runs[0], [question(1, True)])
    write_answers(runs[1], [question(2, True)])
    (runs[2] / "predictions").mkdir()
    (runs[2] / "predictions/trained-MRI-reason.jsonl").write_text("{\n\0")
    text = report.page(runs, 4 * MB)

    for name in ("b", "c"):
        assert f"MRI: a and {name} share no answered question, so nothing is paired:" in text
    assert table(text, "MRI")["trained minus a, strict"] == ["-", "-", "-"]


def test_evaluations_stand_side_by_side(runs: list[Path]) -> None:
    (runs[1] / "summary.json").unlink()
    shutil.copy(runs[2] / "summary.json", runs[2] / "evaluation.json")
    text = report.page(runs, 4 * MB)
    rows = table(text, "XRAY")

    assert rows["trained"] == ["50.0 [44.0, 56.0]", "-", "50.0 [44.0, 56.0]"]
    assert rows["blank image"] == ["49.0 [43.0, 55.0], n 240", "-", "49.0 [43.0, 55.0], n 240"]
    assert "b: Not finished: 60 of 60 steps, no summary.json." in text
    mean = "3.0 [0.0, 10.0]"
    assert table(text, "mean of unseen modalities")["base"] == [mean, "-", mean]


def test_settings_that_differ_are_listed_and_no_others(runs: list[Path]) -> None:
    text = report.page(runs, 4 * MB)
    part = text[text.index('id="settings-title"') :]
    rows = re.findall('<th scope="row">(.*?)</th>(.*?)</tr>', part)

    assert {name: re.findall("<td>(.*?)</td>", cells) for name, cells in rows} == {
        "seed": ["42", "7", "7"],
        "learning_rate": ["1e-05", "1e-05", "0.5"],
    }
    alone = report.page([runs[0], Path(shutil.copytree(runs[0], runs[0] / "same"))], 4 * MB)
    assert "None: the settings are the same." in alone


def test_the_page_of_supervised_runs_is_not_called_grpo(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, traced=(), method="sft") for name in "ab"]
    assert "<title>a, b: runs</title>" in (text := report.page(runs, 4 * MB))
    assert "GRPO" not in text.partition("<body")[2].partition("</table>")[0]


def test_a_run_without_steps_is_named(runs: list[Path]) -> None:
    (runs[1] / "metrics.jsonl").unlink()
    assert "<p>b: metrics.jsonl holds no step, so it has no curves.</p>" in report.page(
        runs, 4 * MB
    )


def test_charts_that_do_not_fit_are_left_out_and_counted(runs: list[Path]) -> None:
    whole = report.page(runs, 4 * MB)
    small = report.page(runs, len(whole.encode()) * 2 // 3)
    (left_out, n) = re.findall(r"(\d+) of (\d+) charts are left out", small)[0]

    assert len(small.encode()) <= len(whole.encode()) * 2 // 3
    assert int(n) == whole.count("<figure>") == small.count("<figure>") + int(left_out)
    assert "are left out" not in whole


def test_hostile_text_of_several_runs_stays_text(runs: list[Path], tmp_path: Path) -> None:
    named = tmp_path / MARKUP
    shutil.copytree(runs[1], named)
    for run in (runs[0], named):
        (run / "trace").mkdir()
        write_answers(run, [question(1, True, question=MARKUP)])
        hostile_run(run)
    page = Page(made := report.page([runs[0], named], 4 * MB))

    made.encode("utf-8")
    assert "\0" not in made
    assert "\u202e" not in made
    assert not [n for _, tag in page.tags for n in tag if n.startswith("on") or n == "autofocus"]
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert [tag for tag, _ in page.tags].count("img") == 0
    assert "&lt;img src=x onerror=window.pwned=1&gt;" in made


def test_a_mistake_gets_one_line(runs: list[Path], tmp_path: Path) -> None:
    (same := tmp_path / "other" / "a").mkdir(parents=True)
    shutil.copy(runs[0] / "config.json", same)
    out = ["--out", str(tmp_path / "page.html")]
    damaged = Path(shutil.copytree(runs[0], tmp_path / "damaged"))
    write_answers(runs[0], [question(1, True)])
    write_answers(damaged, [question(1, True, correct="so")])
    wrong = {}
    for argv, line in (
        ([runs[0], runs[1]], "2 runs on one page: name its file with --out FILE"),
        ([runs[0], runs[0], *out], "a: another run has this name; rename one, or name it once"),
        ([runs[0], same, *out], "other/a: another run has this name; rename one"),
        ([runs[0], tmp_path, *out], "has no config.json; name the folder of a run"),
        ([runs[0], damaged, *out], "damaged: a file of it holds what no run writes"),
    ):
        try:
            said = report.main(list(map(str, argv)))
        except UsageError as error:
            said = str(error)
        if line not in str(said):
            wrong[line] = said
    assert wrong == {}
    assert not (tmp_path / "page.html").exists()


def test_the_program_writes_the_page_of_several_runs(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main([*map(str, runs), "--out", str(tmp_path / "page.html")])

    assert (tmp_path / "page.html").read_text().count("<figure>") > 10
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'page.html'}, 0.")


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM, reason="no chromium; apt-get install chromium")
def test_the_page_of_several_runs_in_a_browser(runs: list[Path], tmp_path: Path) -> None:
    """It fits its window, its console stays empty, hostile names do nothing, and the keyboard
    reaches what scrolls."""
    named = Path(shutil.copytree(runs[1], tmp_path / MARKUP))
    (named / "trace").mkdir()
    hostile_run(named)
    file = tmp_path / "page.html"
    file.write_text(report.page([*runs, named], 4 * MB), encoding="utf-8")
    with Browser() as browser:
        for width, dark in ((375, False), (1400, True)):
            browser.open(file, width, dark=dark)
            assert browser.js("document.documentElement.scrollWidth") <= width
            assert browser.js("window.pwned === undefined")
            assert browser.complaints() == []
        tops = "[...document.querySelectorAll('h2')].map((h) => h.getBoundingClientRect().top)"
        assert all(a < b for a, b in pairwise(browser.js(tops)))
        assert browser.js("document.querySelectorAll('.scroll:not([tabindex])').length") == 0
        marks = "[...document.querySelectorAll('figure use')].every((u) => u.getBBox().width > 0)"
        assert browser.js(marks)

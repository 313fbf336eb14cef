"""The report of a run folder: what is in the page, that it is true, bounded, and only text."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from grpo.report import page as report
from grpo.report import token_table as inspector
from grpo.settings.errors import UsageError
from tests.grpo.report.pages import HOSTILE, Page, hostile_run
from tests.grpo.report.runs import make_run, summary

MB = 1_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, traced run. Read only."""
    return make_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def whole(run: Path) -> str:
    """The page of that run, nothing left out."""
    return report.page(run, 4 * MB)


@pytest.fixture
def mine(run: Path, tmp_path: Path) -> Path:
    """A copy of it to be spoilt."""
    return Path(shutil.copytree(run, tmp_path / "mine"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_every_number_of_every_token_is_that_of_the_trace(run: Path, whole: str) -> None:
    at, shown = 0, [tag["data-v"].split("\n") for tag in Page(whole).attributes("i", "data-v")]
    for traced in inspector.traced_steps(run)[0]:
        tensors = load_file(run / "trace" / f"step-{traced.step:06d}.safetensors")
        loss = tensors["loss"]
        share = -100 * loss / loss.abs().nansum(1, keepdim=True)
        rows = [None, tensors["logprobs"], tensors["old_logprobs"][None],
                tensors["ref_logprobs"][None], tensors["ratio"], tensors["kl"],
                tensors["entropy"], loss, share]  # fmt: skip
        for i in ranked(traced):
            for place in (tensors["row"] == i).nonzero().flatten().tolist():
                for row, cells in zip(rows[1:], shown[at][1:], strict=True):
                    values = re.sub("%|low|high", " ", cells).split()
                    if row[0, place].isnan():
                        assert set(values) == {"-"}
                    else:
                        expected = row[:, place].tolist()
                        assert list(map(float, values)) == pytest.approx(expected, rel=5e-6)
                at += 1
    assert at == len(shown) > 500


def ranked(traced: inspector.Traced) -> list[int]:
    """The step's completions as they should be shown: by group, best advantage first."""
    advantages = traced.tensors["advantages"]
    size = advantages.shape[1]
    return [
        b * size + i
        for b, by_completion in enumerate(advantages.tolist())
        for i in sorted(range(size), key=by_completion.__getitem__, reverse=True)
    ]


def test_a_clipped_token_is_marked_with_its_side_where_the_gradient_is_gone(
    run: Path, whole: str
) -> None:
    shown = Page(whole).attributes("i", "data-v")
    clipped = 0
    for traced in inspector.traced_steps(run)[0]:
        ratio, row = traced.tensors["ratio"], traced.tensors["row"]
        advantages = traced.tensors["advantages"].flatten()[row]
        clipped += int((((ratio > 1.2) & (advantages > 0)) | ((ratio < 0.8) & (advantages < 0)))
                       .any(0).sum())  # fmt: skip
    marked = [tag for tag in shown if "c" in tag.get("class", "").split()]

    assert len(marked) == clipped > 10
    assert all(re.search("low|high", tag["data-v"].split("\n")[4]) for tag in marked)


def test_groups_carry_the_marks_that_the_filters_look_for(whole: str) -> None:
    groups = Page(whole).attributes("details", "data-marks")
    marks = [set(tag["data-marks"].split("|")) for tag in groups]

    assert ["truncated" in found for found in marks] == [True, False, False] * 3
    assert ["wrong but rewarded" in found for found in marks] == [False, True, False] * 3
    assert ["no signal" in found for found in marks] == [False, False, True] * 3
    assert [tag["data-modality"] for tag in groups] == ["MRI", "CT", "MRI"] * 3


def test_a_control_of_training_is_named_above_the_title(mine: Path, whole: str) -> None:
    config = json.loads((mine / "config.json").read_text())["config"]
    edit(mine / "config.json", config=config | {"shuffle_answers": True})

    assert "GRPO on MRI, a control: right answers permuted</p>" in report.page(mine, MB)
    edit(mine / "config.json", config=config | {"blind": True})
    assert "GRPO on MRI, a control: trained without images</p>" in report.page(mine, MB)
    assert "right answers permuted" not in whole
    assert "without images</p>" not in whole


def test_the_page_of_a_supervised_run_says_which_runs_have_a_trace(tmp_path: Path) -> None:
    made = report.page(make_run(tmp_path / "run", traced=(), method="sft"), 4 * MB)
    assert "<title>run: run</title>" in made
    assert "no step can be opened. GRPO runs have one, unless --trace-steps is 0.</p>" in made


def test_a_step_says_what_it_took(whole: str) -> None:
    text = re.sub("<[^>]+>", "", whole)

    assert "rollout 0.3, update 0.3; most memory so far 851.5 MB" in text


def test_a_curve_says_in_words_and_numbers_what_it_draws(whole: str) -> None:
    page = Page(whole)
    words = [tag["aria-label"] for tag in page.attributes("svg", "role")]

    (kl,) = (text for text in words if text.startswith("KL"))
    assert "at step 1, 0.2 at step 60" in kl
    (length,) = (text for text in words if text.startswith("Completion length"))
    assert "min 3 at step 1" in length
    assert "between 2 and 6" in length


def test_each_modality_that_is_validated_has_a_line_that_needs_no_colour(whole: str) -> None:
    words = [tag["aria-label"] for tag in Page(whole).attributes("svg", "role")]
    (accuracy,) = (text for text in words if text.startswith("Accuracy by modality"))
    figure = whole[whole.index("<b>Accuracy by modality</b>") :].partition("</figure>")[0]
    styles = re.findall(r'<polyline class="(l\d)"', figure)
    dashes = [re.findall(rf"\.{style} {{ stroke-dasharray: (.+?); }}", whole) for style in styles]

    assert "MRI, trained on 0.3 at step 20, 0.7 at step 60" in accuracy
    assert "; CT 0.2 at step 20, 0.6 at step 60" in accuracy
    assert len(set(map(str, dashes))) == len(dashes) == 3
    legend = re.findall(r"</svg>([^<]+) <b>", figure)
    assert legend == ["MRI, trained on", "CT", "XRAY"]


def test_what_does_not_fit_is_left_out_and_counted(run: Path, whole: str) -> None:
    small = report.page(run, 150_000)
    groups = len(Page(small).attributes("details", "data-marks"))

    assert len(small.encode()) <= 150_000 < len(whole.encode())
    assert 0 < groups < 9 == len(Page(whole).attributes("details", "data-marks"))
    left_out = re.findall(r"(\d) of the 3 groups are left out", small)
    assert sum(map(int, left_out)) == 9 - groups
    assert "are left out" not in whole


def test_hostile_text_stays_text(mine: Path) -> None:
    made = report.page(hostile_run(mine), 4 * MB)
    page = Page(made)

    made.encode("utf-8")
    assert "\0" not in made
    assert "\u202e" not in made
    assert not [n for _, tag in page.tags for n in tag if n.startswith("on") or n == "autofocus"]
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert {tag["src"][:22] for tag in page.attributes("img")} == {"data:image/png;base64,"}
    tokens = [text for text, (tag, attributes) in zip(page.texts, page.tags, strict=True)
              if tag == "i" and "data-v" in attributes]  # fmt: skip
    assert set(tokens) == {*HOSTILE[:5], r"a\x00b", r"half a pair \ud83d", r"\u202eturned round",
                           HOSTILE[-1]}  # fmt: skip


def test_the_policy_allows_the_page_its_own_script_and_style_and_no_more(whole: str) -> None:
    (policy,) = (tag["content"] for tag in Page(whole).attributes("meta") if "http-equiv" in tag)
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))

    def hash_of(tag: str) -> str:
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", whole, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert allowed == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": hash_of("style"),
        "script-src": hash_of("script"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not Page(whole).attributes("a", "target")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', whole)


def test_a_run_that_was_cut_off_gives_a_page_that_says_so(mine: Path) -> None:
    (mine / "summary.json").unlink()
    shutil.rmtree(mine / "trace")
    lines = (mine / "metrics.jsonl").read_text().splitlines()
    (mine / "metrics.jsonl").write_text("\n".join([*lines[:20], lines[20][:90]]))
    made = report.page(mine, 4 * MB)

    assert "Not finished: 20 of 60 steps, no summary.json." in made
    assert "Lines of metrics.jsonl that cannot be read: 1. A run that is killed" in made
    assert "This run has no trace" in made
    assert "This run has not been scored yet." in made
    assert "KL to the reference" in made


def test_a_run_folder_with_its_settings_alone_is_a_page(mine: Path) -> None:
    for file in (*mine.glob("*.json*"), *mine.glob("trace/*.*")):
        if file.name != "config.json":
            file.unlink()

    assert "metrics.jsonl holds no step" in report.page(mine, 4 * MB)


def test_a_damaged_traced_step_is_left_out_by_name(mine: Path) -> None:
    wrong = {}
    for spoil in ("{", "[]", '{"step": 30}', '{"step": "x", "groups": []}'):
        (mine / "trace/step-000030.json").write_text(spoil)
        made = report.page(mine, 4 * MB)
        said = "trace/step-000030.json cannot be read and is left out." in made
        found = said, len(Page(made).attributes("details", "data-step"))
        if found != (True, 2):
            wrong[spoil] = found
    assert wrong == {}


def test_tensors_that_are_not_the_texts_are_not_shown_as_theirs(mine: Path) -> None:
    file = mine / "trace/step-000001.json"
    groups = json.loads(file.read_text())["groups"]
    groups[1]["completions"][0]["tokens"].append("one more")
    edit(file, groups=groups)
    made = report.page(mine, 4 * MB)

    assert "Group 2 of traced step 1 cannot be read." in made
    assert len(Page(made).attributes("details", "data-marks")) == 8


def test_the_evaluation_stands_beside_its_controls(mine: Path) -> None:
    (mine / "evaluation-3.json").write_text(json.dumps(summary()))
    (mine / "foreign.json").write_text('{"results": 1, "chance": []}')
    made = report.page(mine, 4 * MB)

    assert made.count('<details class="sheet"') == 2
    assert "foreign.json cannot be read" in made
    assert "72.0 [66.0, 78.0]" in made
    assert "30.0 [24.0, 36.0], n 240" in made
    assert "with a blank image it scores 49.0; trained&#39;s 50.0 there says little." in made
    assert "visual reliance" in made
    assert "+20.0 [+10.0, +30.0]" in made


def test_settings_that_differ_from_the_recipe_are_marked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", traced=(), recipe="phantom", learning_rate=5e-4, kl_coef=0.0)
    made = report.page(run, 4 * MB)
    changed = re.findall(r'<tr class="changed"><th scope="row">(\w+)</th><td>([^<]*?) <', made)

    expected = json.loads((run / "config.json").read_text())["overrides"]
    assert dict(changed) == {name: str(value) for name, value in expected.items()}
    assert "learning_rate" in expected
    assert "<td>0.0" in made


def test_phantoms_are_never_taken_for_medical_data(whole: str, tmp_path: Path) -> None:
    real = report.page(make_run(tmp_path / "real", traced=(), data="vqa-rad"), 4 * MB)

    assert "Drawn phantoms, not medical data." in whole
    assert "Drawn phantoms" not in real
    assert "Not for clinical use." in real


def test_the_program_writes_the_page_and_says_where(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main([str(run), "--out", str(tmp_path / "page.html")])

    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'page.html'}, 0.")


def test_a_mistake_gets_one_line() -> None:
    wrong = []
    for argv, line in (
        (["nowhere"], "nowhere: has no config.json; name the folder of a run"),
        ([".", "--max-mb", "0"], "--max-mb 0.0: must be greater than 0"),
        ([".", "--out", "no/such/page.html"], "no such folder; make it first"),
        ([".", "--ou", "x"], "--ou: unknown flag; did you mean --out?"),
    ):
        try:
            said = report.main(argv)
        except UsageError as error:
            said = str(error)
        if line not in str(said):
            wrong.append((argv, said))
    assert wrong == []

"""The report of true runs in a browser: on phantoms, cut off, and on real images.

What is seen is held to the files of the trace, which are read here without the report's code.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import train
from grpo.report import page as report
from tests.grpo.report.browser import PROGRAM, Browser
from tests.grpo.report.test_page import card, choose, click

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="no chromium; apt-get install chromium"),
]

FLAGS = "--recipe phantom --device cpu --cache none --steps 2 --group-size 4 --prompts-per-step 4"
FLAGS += " --updates-per-rollout 3 --kl-coef 0.04 --learning-rate 0.02 --warmup-steps 0"
FLAGS += " --max-completion-length 24 --eval-size 4 --eval-every 1 --val-size 4"
ROWS = ("logprobs", "old_logprobs", "ref_logprobs", "ratio", "kl", "entropy", "loss")
REAL = Path(os.environ.get("MEDVQA_DATA", "/nowhere")) / "omnimedvqa"
SEEN = """[...document.querySelectorAll('.group')].map((group, i) => [i, group.checkVisibility()])
    .filter(([, seen]) => seen).map(([i]) => i)"""


@dataclass
class Run:
    """A run folder with its page, and the first traced step as it lies on disk."""

    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @cached_property
    def groups(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "trace/step-000001.json").read_text())["groups"]

    @cached_property
    def tensors(self) -> dict[str, Any]:
        return load_file(self.folder / "trace/step-000001.safetensors")

    def with_page(self) -> "Run":
        self.page.write_text(report.page(self.folder, 4_000_000), encoding="utf-8")
        return self


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The runs that are made so far, by what they are of."""
    made = tmp_path_factory.mktemp("runs") / "phantoms"
    train.main([*FLAGS.split(), "--out", str(made)])
    return {"phantoms": Run(made).with_page()}


def cut_off(whole: Path, folder: Path) -> Path:
    """What a run leaves behind that was killed while it wrote the record of its second step."""
    shutil.copytree(whole, folder)
    for name in ("summary.json", "trace/step-000002.json", "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "predictions")
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines[: lines.index("\n") + 40])
    return folder


@pytest.fixture(params=["phantoms", "cut off", "real images"])
def run(request: pytest.FixtureRequest, runs: dict[str, Run], tmp_path_factory) -> Run:
    name = request.param
    if name not in runs:
        folder = tmp_path_factory.mktemp("more") / "run"
        if name == "cut off":
            cut_off(runs["phantoms"].folder, folder)
        elif not REAL.is_dir():
            pytest.skip("MEDVQA_DATA names no real images")
        else:
            train.main([*FLAGS.split(), "--data", f"omnimedvqa:{REAL}", "--out", str(folder)])
        runs[name] = Run(folder).with_page()
    return runs[name]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [375, 1400])
def test_the_page_is_whole_and_the_console_stays_empty(
    browser: Browser, run: Run, width: int, dark: bool
) -> None:
    browser.open(run.page, width, dark=dark)
    browser.point_at("#step-1 .tokens i")
    side = "parseFloat(getComputedStyle(document.querySelector('#step-1 .tokens i'), '::{}').{})"

    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js(side.format("before", "left")) >= 0, "the card's names are cut off"
    assert browser.js(side.format("after", "right")) >= 0
    assert browser.js("[...document.images].every((of) => of.complete && of.naturalWidth > 0)")
    assert browser.js("document.images.length") >= len(run.groups)
    assert browser.complaints() == []


def test_each_run_has_its_curves_and_says_what_it_is(browser: Browser, run: Run) -> None:
    browser.open(run.page)
    text = browser.js("document.body.innerText")

    assert all(f"{m} " in text for m in ("MRI, trained on", "CT", "XRAY"))
    finished = (run.folder / "summary.json").exists()
    assert ("Not finished: 1 of 2 steps" in text) != finished
    config = json.loads((run.folder / "config.json").read_text())["config"]
    assert ("Drawn phantoms, not medical data." in text) == (config["data"] == "phantom")


def test_a_token_pointed_at_shows_the_numbers_of_the_trace(browser: Browser, run: Run) -> None:
    browser.open(run.page)
    browser.js("document.querySelectorAll('#step-1 > .group').forEach((of) => of.open = true)")
    checked = 0
    for b in range(len(run.groups)):
        first = f"#step-1 > .group:nth-of-type({b + 1}) .completions li:nth-child(1) .tokens"
        label = browser.js(f"document.querySelector({json.dumps(first)}).ariaLabel")
        row = b * 4 + int(label.removeprefix("Tokens of completion ")) - 1
        assert run.tensors["advantages"].flatten()[row] == run.tensors["advantages"][b].max()
        places = (run.tensors["row"] == row).nonzero().flatten().tolist()
        for t in {0, len(places) // 2, len(places) - 1}:
            browser.point_at(f"{first} i:nth-child({t + 1})")
            shown = card(browser, f"{first} i:nth-child({t + 1})").split("\n")[1:]
            for name, cells in zip(ROWS, shown[:-1], strict=True):
                values = [float(x) for x in re.sub("low|high", "", cells).split()]
                expected = run.tensors[name][..., places[t]].flatten().tolist()
                assert values == pytest.approx(expected, rel=5e-6), (name, b, t)
                checked += 1
    assert checked >= 4 * 2 * len(ROWS)


def test_filters_leave_the_groups_that_the_trace_says(browser: Browser, run: Run) -> None:
    browser.open(run.page)
    kinds = [group["question_type"] for group in run.groups]
    assert browser.js(SEEN) == list(range(4))
    for kind in sorted(set(kinds)):
        choose(browser, "#type", kind)
        assert browser.js(SEEN) == [b for b, found in enumerate(kinds) if found == kind]
    choose(browser, "#type", "")
    marked = {
        "no signal": [group["zero_variance"] for group in run.groups],
        "truncated": [any(c["truncated"] for c in group["completions"]) for group in run.groups],
    }
    for mark, holds in marked.items():
        click(browser, f"[value='{mark}']")
        assert browser.js(SEEN) == [b for b, marked in enumerate(holds) if marked]
        click(browser, f"[value='{mark}']")
    assert browser.js("document.querySelector('#modality').closest('label').hidden")
    assert browser.complaints() == []

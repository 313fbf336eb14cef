"""The report's page in a browser: what a reader with a mouse, a keyboard or neither script gets."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from grpo.report import page as report
from tests.grpo.report.browser import PROGRAM, Browser
from tests.grpo.report.pages import hostile_run
from tests.grpo.report.runs import make_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="no chromium; apt-get install chromium"),
]

TOKENS = "#step-1 .group .completions li:nth-child({}) .tokens i:nth-child({})"
CARD = "getComputedStyle(document.querySelector({}), '::after').content"
SEEN = """[...document.querySelectorAll('.group')].filter((group) => group.checkVisibility())
    .map((group) => group.querySelector('.asked .fine').textContent.trim())"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "finished")
    (run / "report.html").write_text(report.page(run, 4_000_000), encoding="utf-8")
    return run


@pytest.fixture
def page(browser: Browser, run: Path) -> Browser:
    browser.open(run / "report.html")
    return browser


def card(page: Browser, selector: str) -> str:
    """What stands in the card of a token now, "none" where it is not shown."""
    return unquoted(page.js(CARD.format(json.dumps(selector))))


def unquoted(content: str) -> str:
    """A CSS string as text."""
    return content.strip('"').replace("\\a ", "\n")


def seen(page: Browser) -> list[str]:
    """Step and number of the groups that can be seen, as 1-0 for the first of step 1."""
    return [text.rpartition("phantom-")[2] for text in page.js(SEEN)]


def choose(page: Browser, selector: str, value: str) -> None:
    where = f"document.querySelector({json.dumps(selector)})"
    page.js(f"{where}.value = {json.dumps(value)}")
    page.js(f"{where}.dispatchEvent(new Event('change', {{bubbles: true}}))")


def click(page: Browser, selector: str) -> None:
    page.js(f"document.querySelector({json.dumps(selector)}).click()")


def trace_of(run: Path, place: int) -> dict[str, Any]:
    """The numbers of a token of step 1."""
    tensors = load_file(run / "trace/step-000001.safetensors")
    return {name: tensors[name][:, place].tolist() for name in ("logprobs", "ratio", "loss")}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [375, 1400])
def test_the_page_fits_its_window_and_the_console_stays_empty(
    browser: Browser, run: Path, width: int, dark: bool
) -> None:
    browser.open(run / "report.html", width, dark=dark)
    click(browser, "#settings details summary")

    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []
    paper = browser.js("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(19, 22, 24)" if dark else "rgb(251, 251, 249)")


def test_a_token_pointed_at_shows_the_numbers_of_the_trace(page: Browser, run: Path) -> None:
    token = TOKENS.format(1, 3)  # completion 0 is the best of group 0, and stays first
    assert card(page, token) == "none"
    page.point_at(token)

    rows = card(page, token).split("\n")
    told = trace_of(run, 2)
    for row, name in ((1, "logprobs"), (4, "ratio"), (7, "loss")):
        values = [float(x) for x in rows[row].split() if x not in ("low", "high")]
        assert values == pytest.approx(told[name], rel=5e-6)
    names = page.js(CARD.format(json.dumps(token)).replace("after", "before"))
    assert unquoted(names).split("\n")[4] == "ratio"


def test_the_keyboard_reaches_every_token(page: Browser) -> None:
    page.js("document.querySelector('#step-1 .prompt summary').focus()")
    page.press("Tab")
    assert card(page, TOKENS.format(1, 1)) != "none"
    page.press("ArrowRight")
    assert card(page, TOKENS.format(1, 1)) == "none"
    assert card(page, TOKENS.format(1, 2)).startswith(" One\n")
    assert "ratio 1 " in page.js("document.activeElement.ariaLabel")
    page.press("End")
    assert card(page, TOKENS.format(1, 15)).startswith(" <|im_end|>\n")
    page.press("Tab")

    assert card(page, TOKENS.format(2, 1)) != "none"


def test_the_chooser_shows_one_step_and_filters_its_groups(page: Browser) -> None:
    assert seen(page) == ["1-0", "1-1", "1-2"]
    click(page, "#after")
    assert seen(page) == ["30-0", "30-1", "30-2"]
    choose(page, "#step-choice", "60")
    assert seen(page) == ["60-0", "60-1", "60-2"]
    choose(page, "#modality", "CT")
    assert seen(page) == ["60-1"]
    choose(page, "#modality", "")
    choose(page, "#type", "count")
    assert seen(page) == ["60-2"]
    assert page.js("document.querySelector('#count').textContent") == (
        "1 of 3 groups here, 2 in other steps"
    )


@pytest.mark.parametrize(
    ("mark", "left"),
    [("no signal", ["1-2"]), ("truncated", ["1-0"]), ("wrong but rewarded", ["1-1"])],
)
def test_a_ticked_mark_leaves_the_groups_that_have_it(
    page: Browser, mark: str, left: list[str]
) -> None:
    click(page, f"[value='{mark}']")
    assert seen(page) == left
    click(page, "[value=clipped]")

    assert seen(page) == [group for group in left if group != "1-2"]


def test_the_search_looks_into_questions_and_completions_of_all_steps(page: Browser) -> None:
    def typed(words: str) -> str:
        page.js(f"document.querySelector('#search').value = {json.dumps(words)}")
        page.js("document.querySelector('#search').dispatchEvent(new Event('input'))")
        return page.js("document.querySelector('#count').textContent")

    assert typed("of IMAGE 2  is") == "1 of 3 groups here, 2 in other steps"
    assert seen(page) == ["1-2"]
    assert typed("one lesion : large CYST") == "3 of 3 groups here, 6 in other steps"
    assert typed("nowhere") == "0 of 3 groups here, 0 in other steps"
    assert typed("") == "3 of 3 groups here, 6 in other steps"


def test_a_search_goes_to_the_step_that_has_it(browser: Browser, run: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(run, tmp_path / "mine"))
    record = json.loads((mine / "trace/step-000060.json").read_text())
    record["groups"][1]["completions"][2]["tokens"][3] = "zebra\n"
    (mine / "trace/step-000060.json").write_text(json.dumps(record))
    (mine / "report.html").write_text(report.page(mine, 4_000_000), encoding="utf-8")
    browser.open(mine / "report.html")
    browser.js("document.querySelector('#search').value = 'Zebra'")
    browser.js("document.querySelector('#search').dispatchEvent(new Event('input'))")

    assert seen(browser) == ["60-1"]


@pytest.mark.parametrize("scripts", [True, False])
def test_a_bin_of_rewards_opens_its_groups_by_keyboard(
    browser: Browser, run: Path, scripts: bool
) -> None:
    browser.open(run / "report.html", scripts=scripts)
    group = "document.querySelector('#g60-1').closest('.group')"
    assert not browser.js(f"{group}.open")
    if scripts:
        choose(browser, "#type", "presence")  # a filter that would hide the group
    browser.js("document.querySelector('[href=\\'#step-60\\']').focus()")
    browser.press("Tab")  # the first bin of step 60
    browser.press("Enter")
    assert browser.js("document.activeElement.parentNode.open")
    browser.press("Tab")
    browser.press("Tab")  # its second group
    assert browser.js("document.activeElement.hash") == "#g60-1"
    browser.press("Enter")
    browser.js("new Promise((done) => setTimeout(done, 50))")

    assert browser.js(f"{group}.open")
    assert browser.js(f"{group}.checkVisibility()")
    assert browser.js("document.querySelector('#step-60').open")
    assert browser.complaints() == []


def test_the_open_page_loads_itself_again_and_keeps_what_is_open(
    browser: Browser, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text(report.page(run, 4_000_000, True), encoding="utf-8")
    browser.open(file)
    click(browser, "#after")
    browser.js("document.querySelector('#g30-2').closest('.group').open = true")
    file.write_text(report.page(run, 4_000_000), encoding="utf-8")
    browser.events.clear()
    while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
        browser.events.append(browser._read())

    assert browser.js("document.body.dataset.reload === undefined")
    assert seen(browser) == ["30-0", "30-1", "30-2"]
    assert browser.js("document.querySelector('#g30-2').closest('.group').open")
    assert not browser.js("document.querySelector('#g30-1').closest('.group').open")
    assert browser.complaints() == []


def test_tokens_are_shaded_by_the_chosen_quantity_with_a_line_for_its_size(page: Browser) -> None:
    style = "getComputedStyle(document.querySelector('#step-1 .tokens .{}')).{}"
    assert page.js(style.format("s1", "borderBottomWidth")) == "1px"
    assert page.js(style.format("s2", "borderBottomWidth")) == "2px"
    assert page.js(style.format("s2", "borderBottomStyle")) == "solid"
    assert page.js(style.format("S2", "borderBottomStyle")) == "dotted"
    click(page, "#by-k")

    assert page.js(style.format("k2", "borderBottomWidth")) == "2px"
    assert page.js(style.format("s2:not(.k1, .k2, .k3, .k4)", "borderBottomWidth")) == "0px"
    assert page.js("document.querySelector('.key-k').checkVisibility()")


def test_without_script_all_but_filter_and_chooser_is_there(browser: Browser, run: Path) -> None:
    browser.open(run / "report.html", scripts=False)

    assert browser.js("document.querySelectorAll('.step:not([hidden])').length") == 3
    assert not browser.js("document.querySelector('#filters').checkVisibility()")
    token = TOKENS.format(1, 1)
    browser.point_at(token)
    assert card(browser, token) != "none"
    browser.js("document.querySelector('#step-1 .prompt summary').focus()")
    for _ in range(4):
        browser.press("Tab")
    assert card(browser, TOKENS.format(1, 4)) != "none"


def test_hostile_strings_do_nothing(browser: Browser, run: Path, tmp_path: Path) -> None:
    folder = hostile_run(Path(shutil.copytree(run, tmp_path / "hostile")))
    (folder / "report.html").write_text(report.page(folder, 4_000_000), encoding="utf-8")
    browser.open(folder / "report.html")
    for selector in ("#after", "#by-k", "[value=clipped]", "[value=clipped]", "#before"):
        click(browser, selector)
    for i in range(1, 12):
        browser.point_at(TOKENS.format(1, i))

    assert browser.js("window.pwned === undefined")
    assert browser.js("document.scripts.length") == 1
    assert browser.js("document.querySelectorAll('.step').length") == 3
    assert browser.complaints() == []


def test_the_policy_stops_what_escaping_would_have_missed(page: Browser) -> None:
    page.js("""document.body.insertAdjacentHTML('beforeend',
        '<img src="https://example.org/x.png" onerror="window.pwned=1"><p style="color:red">')""")
    page.js("document.body.append(Object.assign(document.createElement('script'), "
            "{text: 'window.pwned = 1'}))")  # fmt: skip
    page.js("new Promise((done) => setTimeout(done, 50))")
    complaints = " ".join(page.complaints())

    assert page.js("window.pwned === undefined")
    for directive in ("img-src", "style-src", "script-src"):
        assert directive in complaints
    assert "csp" in [e["params"].get("blockedReason") for e in page.events if "params" in e]

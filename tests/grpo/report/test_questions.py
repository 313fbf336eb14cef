"""The traced steps side by side: bins of rewards, recurring questions, what the image adds."""

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo.report import page as report
from grpo.report import token_table as inspector
from grpo.report.questions import MOST_BINS, histogram
from grpo.run.diagnoses import newly_true
from grpo.settings.config import Config
from tests.grpo.report.pages import Page
from tests.grpo.report.runs import make_run

MB = 1_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three traced steps; the first question of the last is that of the first again."""
    run = make_run(tmp_path_factory.mktemp("runs") / "run")
    file = run / "trace/step-000060.json"
    record = json.loads(file.read_text())
    record["groups"][0]["id"] = "phantom-1-0"
    file.write_text(json.dumps(record))
    return run


@pytest.fixture(scope="module")
def whole(run: Path) -> str:
    return report.page(run, 4 * MB)


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of the histogram by step: the HTML of each cell."""
    table = text[text.index("histogram") :]
    table = table[table.index("<tbody>") :].partition("</tbody>")[0]
    rows = re.findall(r'<a href="#step-(\d+)">.*?</th>(.*?)</tr>', table, re.DOTALL)
    return {step: re.findall("<td>(.*?)</td>", cells) for step, cells in rows}


def test_bins_count_every_completion_and_open_to_its_groups(run: Path, whole: str) -> None:
    found = rows_of(whole)
    for step in (1, 30, 60):
        groups = json.loads((run / f"trace/step-{step:06d}.json").read_text())["groups"]
        rewards = [[c["reward"] for c in group["completions"]] for group in groups]
        for value, cell in zip((0.0, 1.0, 2.0), found[str(step)], strict=True):
            n = sum(group.count(value) for group in rewards)
            counted = re.findall(r"<summary.*?>(\d+)</summary>", cell)
            assert counted == ([str(n)] if n else [])
            links = re.findall(rf'href="#g{step}-(\d)">(\d)', cell)
            holding = [b for b, group in enumerate(rewards) if value in group]
            assert links == [(str(b), str(b + 1)) for b in holding]


def test_every_link_leads_to_something(whole: str) -> None:
    page = Page(whole)
    targets = {tag["id"] for _, tag in page.tags if "id" in tag}
    links = {tag["href"][1:] for tag in page.attributes("a", "href")}
    assert links - targets == set()
    assert sum(link.startswith("g") for link in links) == 9


def test_a_group_that_is_left_out_has_no_link(run: Path) -> None:
    page = Page(report.page(run, 130_000))
    targets = {tag["id"] for _, tag in page.tags if "id" in tag}
    links = {tag["href"][1:] for tag in page.attributes("a", "href")}
    assert links - targets == set()
    assert 0 < sum(link.startswith("g") for link in links) < 9


def test_many_different_rewards_share_bins(run: Path) -> None:
    (traced, *_), _ = inspector.traced_steps(run)
    traced.rewards[0][:] = [0.11, 0.29, 0.53, 0.57]
    traced.rewards[1][:] = [0.73, 0.79, 0.83, 0.97]
    edges, ((_, bins),) = histogram([traced])
    assert len(edges) <= MOST_BINS < len({r for group in traced.rewards for r in group})
    counted = Counter()
    for b, group in enumerate(traced.rewards):
        for reward in group:
            counted[max(k for k, edge in enumerate(edges) if edge <= reward), b] += 1
    assert {(k, b): n for k, cell in enumerate(bins) for b, n in Counter(cell).items()} == counted


def test_a_question_of_several_groups_is_followed_over_the_steps(whole: str) -> None:
    part = whole[whole.index("Questions in several groups: 1") :].partition("</table>")[0]
    assert "mean reward 1.25 → 1.25" in part
    rows = re.findall(r'<a href="#(.*?)">(\d+)</a></th><td>(.*?)</td><td>(.*?) </td>', part)
    assert rows == [("g1-0", "1", "1.25", "2 2 1 0"), ("g60-0", "60", "1.25", "2 2 1 0")]
    assert whole.count('<a href="#q1-0">Asked 2 times in traced steps</a>') == 2


def test_diagnoses_are_those_of_the_terminal_with_their_steps(run: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(run, tmp_path / "mine"))
    lines = list(map(json.loads, (mine / "metrics.jsonl").read_text().splitlines()))
    for i, step in enumerate(lines):
        step |= {"completions/clipped_ratio": 0.5, "frac_same_text": float(i > 40), "kl": None}
        step |= {"skipped_updates": float(i == 20), "memory/cuts": int(i == 30)}
    (mine / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config, said, last = Config.load(mine / "config.json"), [], {}
    for i in range(len(lines)):
        history = [{k: math.nan if v is None else v for k, v in s.items()} for s in lines[: i + 1]]
        said += [(i + 1, text) for text in newly_true(history, config, last)]
    said += [(21, "a number was not finite: updates were left out")]
    said += [(31, "out of memory, and done again in halves")]
    text = report.page(mine, 4 * MB)
    part = text[text.index('class="alerts"') :].partition("</ul>")[0]
    found = re.findall(r"<li>(?:<a href=\"#step-\d+\">)?Step (\d+)(?:</a>)?: (.*?)</li>", part)

    assert len(said) > 4
    assert [(int(step), sentence) for step, sentence in found] == sorted(said)
    assert '<a href="#step-30">' not in part  # said of no step that is traced
    (mine / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines[:3])))
    assert "Nothing was found wrong" in report.page(mine, 4 * MB)


def test_what_cannot_be_diagnosed_is_said(run: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(run, tmp_path / "mine"))
    lines = (mine / "metrics.jsonl").read_text().splitlines()
    lines[4] = json.dumps(json.loads(lines[4]) | {"frac_reward_zero_std": "much"})
    (mine / "metrics.jsonl").write_text("\n".join(lines))
    assert "not all is diagnosed" in report.page(mine, 4 * MB)


def test_tokens_are_shaded_by_what_the_image_adds(run: Path, whole: str, tmp_path: Path) -> None:
    """Also where a run was resumed with --trace-blind: the steps before have none."""
    mine = Path(shutil.copytree(run, tmp_path / "mine"))
    file = mine / "trace/step-000060.safetensors"
    tensors = load_file(file)
    added = torch.linspace(-3, 3, len(tensors["row"]))
    tensors |= {"seen_logprobs": added - 4, "blind_logprobs": torch.full_like(added, -4)}
    save_file(tensors, file)
    text = report.page(mine, 4 * MB)
    tokens = Page(text).attributes("i", "data-v")
    rows = re.findall(r'--rows: "(.*?)"', text)[0].split("\\A ")
    shown = [tag["data-v"].split("\n")[rows.index("image")] for tag in tokens]
    n = len(shown) // 3
    levels = [(0.1, "1"), (0.5, "2"), (1.0, "3"), (2.0, "4")]

    assert set(shown[: 2 * n]) == {"-"}
    assert sorted(map(float, shown[2 * n :])) == pytest.approx(added.tolist(), abs=1e-5)
    for tag, value in zip(tokens[2 * n :], shown[2 * n :], strict=True):
        level = max((name for bound, name in levels if abs(float(value)) >= bound), default="")
        wanted = {("I" if float(value) < 0 else "i") + level} if level else set()
        assert {c for c in tag.get("class", "").split() if c[0] in "iI"} == wanted
    assert 'id="by-i"' in text
    assert 'id="by-i"' not in whole

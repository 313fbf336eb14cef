"""The page of one group: its arithmetic in a browser is that of grpo/loss.py and advantages.py."""

import html
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import train
from grpo.advantages import group_advantages
from grpo.explain.explanation import explanation
from grpo.explain.page import ROWS, page, write_page
from grpo.loss import clipped, clipped_surrogate, importance_ratio, k3_kl, token_weights
from grpo.settings.errors import UsageError
from models.policy import Policy
from tests.conftest import randomise
from tests.grpo.cases import QUESTIONS, config, reward, steps
from tests.grpo.report.browser import PROGRAM, Browser
from tests.grpo.report.pages import hostile_run
from tests.grpo.report.runs import make_run
from tests.programs import ROOT, Program

LENGTHS = (15, 4, 9, 12)  # of the completions of the group that the page shows
REAL = {"group_size": 4, "advantage": "group", "loss": "grpo", "clip_eps": 0.2, "kl_coef": 0.04}
REAL |= {"clip_eps_high": 0.2, "update": 1, "stretch": 1, "shift": 0}
REWARDS = (1, 1, 0, 1)
MOVED = (  # controls and rewards, each by its name in the page
    {},
    {"reward of o_1": -0.5, "reward of o_3": 2.25},
    {"reward of o_3": 1},  # equal rewards
    {"group_size": 3},
    {"group_size": 2},  # both earn 1
    {"advantage": "none"},
    {"advantage": "reward", "kl_coef": 0.5},
    {"loss": "dapo"},
    {"loss": "dr_grpo", "group_size": 3},
    {"clip_eps": 0.01, "clip_eps_high": 0.31},
    {"clip_eps": 0.45, "clip_eps_high": 0.02},
    {"kl_coef": 0},
    {"update": 0},
    {"stretch": 4.5},
    {"shift": 0.37, "reward of o_2": 0.3},
    {"shift": -0.6, "stretch": 0},
    {"update": 0, "shift": -1, "loss": "dapo", "advantage": "none", "group_size": 3},
)
SET = """(([name, value]) => {
    const control = document.getElementById('controls').elements[name];
    control.value = value;
    control.dispatchEvent(new Event('input', {bubbles: true}));
})"""
TAKEN = "[...document.querySelectorAll('.completions > li:not(.absent) .tokens i')]"
NUMBERS = f"{TAKEN}.map((i) => i.dataset.v)"
TOTALS, MOVED_BY_YOU = (
    f"document.querySelector('#{id}').textContent" for id in ("totals", "moved")
)
browsed = pytest.mark.skipif(not PROGRAM, reason="no chromium; apt-get install chromium")


def cut(run: Path) -> None:
    """Shorten the completions of a made run's last step, so that their lengths differ."""
    file = run / "trace/step-000060.json"
    record, tensors = json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))
    row = tensors["row"]
    first = torch.tensor([(row == i).nonzero()[0, 0] for i in range(int(row.max()) + 1)])
    kept = torch.arange(len(row)) - first[row] < torch.tensor(LENGTHS)[row % len(LENGTHS)]  # (N,)
    for name, values in tensors.items():
        if values.shape[-1] == len(row):
            tensors[name] = values[..., kept].contiguous()
    for group in record["groups"]:
        for completion, n in zip(group["completions"], LENGTHS, strict=True):
            completion["tokens"] = completion["tokens"][:n]
    save_file(tensors, file.with_suffix(".safetensors"))
    file.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and, beside it, the page of group 2 of step 60. Read only."""
    run = make_run(tmp_path_factory.mktemp("runs") / "made", kl_coef=0.04, max_completion_length=33)
    cut(run)
    write_page(run, str(run / "group.html"))
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


def expected(run: Path, moved: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The rows of numbers (n, 9) of all tokens taken, and whether the clip acts (n,): float64."""
    c = REAL | moved
    tensors, g = load_file(run / "trace/step-000060.safetensors"), c["group_size"]
    at = (tensors["row"] >= 4) & (tensors["row"] < 4 + g)  # of group 2
    row = tensors["row"][at] - 4
    old, ref = tensors["old_logprobs"][at].double(), tensors["ref_logprobs"][at].double()
    logprobs = tensors["logprobs"][c["update"], at].double()
    logprobs = (old + c["stretch"] * (logprobs - old) + c["shift"]).clamp(max=0).requires_grad_()
    rewards = [moved.get(f"reward of o_{i + 1}", REWARDS[i]) for i in range(g)]
    advantages = torch.tensor([rewards], dtype=torch.float64)
    if c["advantage"] != "reward":
        advantages = group_advantages(advantages, c["advantage"])
    advantages = advantages.flatten()[row]
    weights = token_weights(torch.tensor(LENGTHS[:g]), c["loss"], 33)
    ratio, kl = importance_ratio(logprobs, old), k3_kl(logprobs, ref)
    surrogate = clipped_surrogate(ratio, advantages, c["clip_eps"], c["clip_eps_high"])
    loss = -weights * (surrogate - c["kl_coef"] * kl)
    loss.sum().backward()
    rows = logprobs, old, ref, ratio, kl, surrogate, weights, loss, logprobs.grad
    low, high = clipped(ratio, advantages, c["clip_eps"], c["clip_eps_high"])
    return torch.stack([row.detach().double() for row in rows], dim=1), low | high


def move(browser: Browser, moved: dict[str, Any]) -> None:
    for item in moved.items():
        browser.js(f"{SET}({json.dumps(item)})")


@pytest.fixture
def opened(browser: Browser, run: Path) -> Browser:
    browser.open(run / "group.html")
    return browser


@browsed
@pytest.mark.slow
def test_the_page_computes_what_the_loss_computes(opened: Browser, run: Path) -> None:
    wrong, largest = [], 0.0
    for moved in MOVED:
        opened.js("document.getElementById('restore').click()")
        move(opened, moved)
        shown = opened.js(f"{TAKEN}.map((i) => [i.className, i.dataset.v])")
        rows, acts = expected(run, moved)
        found = torch.tensor([list(map(float, v.split("\n")[1:])) for _, v in shown]).double()
        error = ((found - rows).abs() / rows.abs().clamp(min=1e-3)).max(dim=0).values
        largest = max(largest, error.max().item())
        names = [classes.split() for classes, _ in shown]
        signs = [("up" in classes) - ("down" in classes) for classes in names]
        told = re.match(r"loss (\S+); (\d+) of (\d+) tokens clipped", opened.js(TOTALS))
        checks = {
            "numbers": error.max() <= 1e-5,
            "signs": signs == (-rows[:, -1].sign()).int().tolist(),
            "clip": ["c" in classes for classes in names] == acts.tolist(),
            "loss": float(told[1]) == pytest.approx(rows[:, -2].sum().item(), rel=1e-3, abs=1e-9),
            "counts": (int(told[2]), int(told[3])) == (int(acts.sum()), len(acts)),
        }
        wrong += [(moved, name, error.tolist()) for name, right in checks.items() if not right]
    print(f"largest relative error in {len(MOVED)} settings: {largest:.2g}")
    assert wrong == []


@browsed
@pytest.mark.slow
def test_what_is_moved_is_named_and_reset_brings_the_real_numbers_back(opened: Browser) -> None:
    real = opened.js(NUMBERS)
    assert opened.js(MOVED_BY_YOU) == "nothing"
    move(opened, {"kl_coef": 0.3, "reward of o_2": 5})
    assert opened.js(MOVED_BY_YOU) == "kl_coef, reward of o_2"
    assert opened.js(NUMBERS) != real
    opened.js("document.getElementById('restore').click()")

    assert opened.js(MOVED_BY_YOU) == "nothing"
    assert opened.js(NUMBERS) == real
    move(opened, dict.fromkeys([f"reward of o_{i}" for i in range(1, 5)], 0.1))
    assert opened.js(TOTALS).endswith("Equal rewards: no signal.")


@browsed
@pytest.mark.slow
def test_the_keyboard_moves_a_setting_and_reaches_the_tokens(opened: Browser) -> None:
    opened.js("document.querySelector('[name=group_size]').focus()")
    opened.press("ArrowLeft")
    assert opened.js("document.querySelectorAll('.absent').length") == 1
    opened.js("document.querySelector('[data-reward]').focus()")
    opened.press("Tab")
    opened.press("ArrowRight")

    assert opened.js("document.activeElement.textContent") == " One"
    label = opened.js("document.activeElement.ariaLabel")
    assert [part.split(" ")[0] for part in label.split(", ")][-3:] == ["w", "loss", "gradient"]
    card = opened.js("getComputedStyle(document.activeElement, '::after').content")
    assert card.count("\\a ") == len(ROWS) - 1


@browsed
@pytest.mark.slow
def test_the_page_fits_its_window_and_asks_nothing_of_the_network(
    browser: Browser, run: Path, tmp_path: Path
) -> None:
    hostile = hostile_run(make_run(tmp_path / "hostile", kl_coef=0.0))
    write_page(hostile, str(hostile / "group.html"))
    for folder, width, dark in ((run, 375, True), (run, 1400, False), (hostile, 375, False)):
        browser.open(folder / "group.html", width, dark=dark)
        move(browser, {"stretch": 3})
        assert browser.js("document.documentElement.scrollWidth") <= width
        assert browser.complaints() == []
        paper = browser.js("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(19, 22, 24)" if dark else "rgb(251, 251, 249)")
    assert browser.js("window.pwned === undefined")
    assert browser.js("document.scripts.length") == 1
    assert browser.js("document.querySelectorAll('[type=range][disabled]').length") == 1


def flat(text: str) -> dict[str, Any]:
    """The log-probs that a page holds."""
    return json.loads(html.unescape(re.search(r'data-group="(.*?)"', text)[1]))


def test_a_fresh_group_has_the_log_probs_of_before_and_after_its_step(fresh, tmp_path):
    c, policy = config(prompts_per_step=1, kl_coef=0.1), randomise(fresh())
    (step,) = steps(policy, lambda *_: QUESTIONS[0], reward, c)
    file = tmp_path / "group.html"
    told = {"question": "Which side?", "options": ["left"], "gold": "A", "modality": "MRI"}
    told |= {"question_type": "side", "asked": "reason", "prompt": "", "id": "one"}
    explanation(policy, step, c, lambda _: (told, []), policy.chat.pieces, str(file))
    text = file.read_text(encoding="utf-8")
    after, _ = logprobs_of(policy, step, c.temperature)

    numbers = flat(text)
    assert numbers["logprobs"] == [step.old_logprobs.tolist(), after.tolist()]
    assert numbers["old_logprobs"] == step.old_logprobs.tolist()
    assert numbers["ref_logprobs"] == step.ref_logprobs.tolist()
    assert numbers["logprobs"][1] != numbers["old_logprobs"]
    assert "Sampled now by train.py --explain" in text
    assert '<option value="1" selected>after the step</option>' in text
    assert [*tmp_path.iterdir()] == [file]


def logprobs_of(policy: Policy, step: Any, temperature: float) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return policy.logprobs(step.rollout.groups, temperature)


def test_a_page_says_what_it_lacks_of_its_run(run: Path, tmp_path: Path) -> None:
    text = page(run)
    assert "Step 60 of made" in text
    assert "The run also had" not in text
    one = make_run(tmp_path / "one", traced=(1,), updates_per_rollout=1, kl_coef=0.0)
    file = one / "trace/step-000001.json"
    record = json.loads(file.read_text())
    record["settings"] |= {"ratio": "sequence", "scale_rewards": "batch", "kl": "k3"}
    file.write_text(json.dumps(record))
    text = page(one)

    assert "The run also had --ratio sequence, which this page leaves out." in text
    assert text.count("which this page leaves out") == 1
    assert "This step made one update" in text
    assert "β: no π_ref" in text


def test_what_cannot_be_shown_is_one_line(run: Path, tmp_path: Path) -> None:
    untraced = make_run(tmp_path / "untraced", traced=())
    for folder in (untraced, tmp_path / "none"):
        with pytest.raises(
            UsageError, match="no traced group with signal; name a run that has one"
        ):
            write_page(folder, str(tmp_path / "group.html"))
    for file in (tmp_path / "no" / "group.html", tmp_path, ""):
        with pytest.raises(UsageError, match=f"--page {file}: cannot be written"):
            write_page(run, str(file))
    for words in (["--page", "x"], ["--explain", "--page"], ["--page"]):
        with pytest.raises(UsageError, match="--page: needs --explain and a file"):
            train.main(words)
    with pytest.raises(UsageError, match="no such folder"):
        train.main(["--explain", "--page", str(tmp_path / "no" / "group.html")])


@pytest.mark.slow
def test_the_program_writes_a_page_or_one_line(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "group.html"
    call = (sys.executable, "-m", "grpo.explain")
    done = Program(*call, str(run), "--page", str(file)).finish()
    assert (done.returncode, done.stdout) == (0, f"wrote {file}\n")
    assert file.read_text(encoding="utf-8") == page(run)
    wrong = (), (str(run),), (str(run), "--page", ""), (str(tmp_path), "--page", str(file))
    for words in (*wrong, ("--page", str(file))):
        done = Program(*call, *words, where=tmp_path, settings={"PYTHONPATH": str(ROOT)}).finish()
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)

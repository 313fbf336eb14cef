"""The numbers that --explain prints, read back from the text and recomputed in plain floats."""

import ast
import math
import re
import statistics
from pathlib import Path

import pytest

import train
from grpo.explain.explanation import explanation, one_step
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from models.policy import Policy
from tests.conftest import randomise
from tests.grpo.cases import QUESTIONS, config, reward, steps

ROOT = Path(__file__).parents[3]
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
ROWS = {  # of the table of tokens: how the line starts -> name here
    "log pi ": "logprob",
    "log pi_old": "old",
    "log pi_ref": "ref",
    "rho": "ratio",
    "clip": "clip",
    "L = ": "gain",
    "KL = x": "kl",
    "w = ": "weight",
    "loss = -w": "loss",
}


def near(value: float) -> object:
    """What six printed digits can be held to, after a few operations on them."""
    return pytest.approx(value, rel=1e-4, abs=1e-6)


def numbers(line: str) -> list[float]:
    return [float(found) for found in re.findall(rf"(?<![\w.]){NUMBER}(?![\w.]|:)", line)]


def line_of(text: str, start: str) -> str:
    (found,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return found.strip()


def table(text: str) -> dict[str, list[float]]:
    """The columns of numbers of the three tokens, by row."""
    rows = {}
    for start, name in ROWS.items():
        cells = re.sub(r"(\S+\.py:\S+)$", "", line_of(text, start)).split()
        rows[name] = [float(cell) for cell in cells[-3:]]
    return rows


def total(text: str) -> float:
    (found,) = re.findall(rf"^ +loss = ({NUMBER})$", text, re.MULTILINE)
    return float(found)


def check(text: str, c: Config) -> dict[str, list[float]]:
    """Everything that follows from what is printed before it; returns the table of tokens."""
    g = c.group_size
    lengths = [numbers(line_of(text, f"o_{i} of"))[0] for i in range(1, g + 1)]
    rewards = [numbers(line_of(text, f"r_{i} ="))[0] for i in range(1, g + 1)]
    assert numbers(line_of(text, "mean ="))[-1] == near(statistics.mean(rewards))
    assert numbers(line_of(text, "std ="))[-1] == near(statistics.stdev(rewards))
    advantages = [numbers(line_of(text, f"A_{i} ="))[-1] for i in range(1, g + 1)]
    for reward_, advantage in zip(rewards, advantages, strict=True):
        centred = reward_ - statistics.mean(rewards)
        assert advantage == near(centred / (statistics.stdev(rewards) + 1e-4))

    found = table(text)
    rows = [int(name) - 1 for name in re.findall(r"o_(\d+)\[", line_of(text, "o_i[t]"))]
    assert rows[0] == advantages.index(max(advantages))
    assert rows[-1] == advantages.index(min(advantages))
    assert len(set(rows)) == 3
    low, high = 1 - c.clip_eps, 1 + c.clip_eps
    for k, i in enumerate(rows):
        ratio = math.exp(found["logprob"][k] - found["old"][k])
        assert found["ratio"][k] == near(ratio)
        bounded = min(max(ratio, low), high)
        assert found["clip"][k] == near(bounded)
        gain = min(ratio * advantages[i], bounded * advantages[i])
        assert found["gain"][k] == near(gain)
        x = math.exp(found["ref"][k] - found["logprob"][k])
        assert found["kl"][k] == pytest.approx(x - math.log(x) - 1, rel=1e-3, abs=1e-6)
        assert found["weight"][k] == near(1 / (g * lengths[i]))
        assert found["loss"][k] == near(-found["weight"][k] * (gain - c.kl_coef * found["kl"][k]))
    shares = [numbers(line_of(text, f"o_{i}: "))[0] for i in range(1, g + 1)]
    assert total(text) == pytest.approx(sum(shares), rel=1e-4, abs=g * 1e-6)
    for name in ("best", "worst"):
        before, after, times = numbers(line_of(text, name))
        assert times == near(math.exp(after - before))
    return found


def test_the_program_explains_one_step_of_the_phantom_question(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.main(["--explain", "--cache", "none", "--device", "cpu"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    assert text.isascii()
    found = check(text, Config(group_size=4, kl_coef=0.04))
    assert found["ratio"] == [1, 1, 1]
    assert found["kl"] == [0, 0, 0]
    assert "The ratio is 1 at every token" in text
    assert "KL is 0 at every token" in text
    assert abs(total(text)) < 1e-6
    assert "0 but for rounding" in text
    assert numbers(line_of(text, "|g| ="))[0] > 1e-3
    assert numbers(line_of(text, "AdamW"))[0] == 0.0012
    (before, after, _), worst = (numbers(line_of(text, name)) for name in ("best", "worst"))
    assert after - before > worst[1] - worst[0], "the best gained on the worst"
    assert list(tmp_path.iterdir()) == [], "it is no run"


def explained(policy: Policy, c: Config, reward=reward) -> str:
    (step,) = steps(policy, lambda *_: QUESTIONS[0], reward, c)
    facts = {"question": "Which side?", "options": ("left", "right\x1b[2J"), "gold": "B"}
    facts |= {"modality": "MRI", "id": "one"}
    pieces = policy.chat.pieces
    return explanation(policy, step, c, lambda example: (facts, []), pieces, page=None)


@pytest.mark.parametrize("mu", [1, 3])
def test_what_holds_of_a_policy_away_from_its_reference(fresh, mu):
    c = config(prompts_per_step=1, updates_per_rollout=mu, kl_coef=0.1, clip_eps=0.05)
    policy = randomise(fresh(), scale=0.1)
    text = explained(policy, c)
    found = check(text, c)
    assert min(found["kl"]) > 0
    assert "KL is 0" not in text
    assert "0 but for rounding" not in text
    assert ("The ratio is 1 at every token" in text) == (mu == 1)
    assert (found["ratio"] == [1, 1, 1]) == (mu == 1)
    assert (found["clip"] != found["ratio"]) == (mu == 3), "the clip has something to do"
    assert f"update {mu} of {mu}" in text
    assert "\x1b" not in text, "an option must not steer the terminal"


def test_every_place_that_is_named_is_there(fresh):
    text = explained(randomise(fresh()), config(prompts_per_step=1))
    places = set(re.findall(r"(\S+\.py):(\S+)", text))
    assert len(places) >= 10
    assert {name for file, name in places if file == "grpo/loop.py"} == {"grpo_step", "policy_pass"}
    for file, name in places:
        nodes = ast.parse((ROOT / file).read_text()).body
        for part in name.split("."):
            (node,) = [n for n in nodes if getattr(n, "name", "") == part]
            nodes = node.body


def test_equal_rewards_explain_nothing(fresh):
    def flat(examples, texts, ids=()):
        return [1.0] * len(texts), {"flat": [1.0] * len(texts)}

    with pytest.raises(UsageError, match="1 questions were drawn, and none"):
        explained(fresh(), config(prompts_per_step=1), flat)


def test_what_is_typed_holds_but_for_what_makes_it_one_step():
    typed = ["--group-size", "6", "--steps", "9", "--method", "sft"]
    c = Config.from_flags(one_step(typed))
    assert (c.group_size, c.steps, c.method, c.prompts_per_step) == (6, 1, "grpo", 1)
    assert (c.recipe, c.kl_coef) == ("phantom", 0.04)

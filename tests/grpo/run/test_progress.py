"""What a run shows: numbers that fit, escaped text, whole lines, and the last line."""

import fcntl
import os
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

import train
from data.example import VQAExample
from data.showing import asked_and_gold
from grpo.metrics import Step, rollout_metrics
from grpo.rollout import Rollout
from grpo.run import terminal as screens
from grpo.run.progress import Progress, sampled, what_changed
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from models.tree import Group
from tests.programs import join

METRICS = {
    "reward": 1.25,
    "rewards/format/mean": 0.75,
    "rewards/accuracy/mean": 0.5,
    "frac_reward_zero_std": 0.25,
    "completions/mean_length": 17.6,
    "completions/clipped_ratio": 0.02,
    "kl": 0.0123,
    "time/rollout": 0.5,
    "time/reference": 0.0,
    "time/update": 0.25,
    "time/step": 0.75,
}
# Clear the screen, go home, rename the window, delete, ring, forge a line, turn the direction.
HOSTILE = "\x1b[2J\x1b[H\x1b]0;owned\x07\x9b31m\x7f\x08\rtrain.py: done\n\u202eevil\u2028\x00"
MOVES = re.compile(r"\x1b\[A|\r|\n")  # what tqdm itself sends a terminal


def step(n: int, text: str = "<answer>B</answer>", question: str = "Which?", **metrics) -> Step:
    """A step of two groups of two completions, `text` the first of them."""
    example = VQAExample("1", (), question, ("left", "right"), 1, "MRI", "side")
    groups = [Group(None, [torch.arange(3)] * 2, [False] * 2, [torch.zeros(3)] * 2)] * 2
    rewards = torch.tensor([[1.25, 0.0], [0.0, 0.0]])
    parts = {"format": rewards.clone(), "findings": torch.full((2, 2), torch.nan)}
    rollout = Rollout([example] * 2, groups, [[text, "B"], ["B", "A"]], rewards, parts)
    advantages = torch.tensor([[0.7071, -0.7071], [0.0, 0.0]])
    same = {"frac_same_text": rollout_metrics(rollout)["frac_same_text"]}
    return Step({"step": n, **METRICS, **same, **metrics}, rollout, advantages)


def run(config: Config, *steps: Step) -> None:
    with closing(Progress(config, asked_and_gold)) as progress:
        for one in steps:
            progress.show(one)


@contextmanager
def terminal(columns: int, monkeypatch: pytest.MonkeyPatch, rows: int = 24) -> Iterator[list[str]]:
    """A real pseudo-terminal as stderr; what it was sent is in the list afterwards."""
    screen, ours = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    sent: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(screen, 4096):
                sent.append(chunk)
        except OSError:  # the other end is closed
            return

    reader, shown = threading.Thread(target=read, daemon=True), []
    reader.start()
    with monkeypatch.context() as patched, os.fdopen(ours, "w", encoding="utf-8") as stderr:
        patched.setattr(sys, "stderr", stderr)
        yield shown
    join(reader)
    os.close(screen)
    shown.append(b"".join(sent).decode())


def test_on_a_terminal_no_line_is_wider_than_it(monkeypatch):
    for columns in (80, 55, 140):
        with terminal(columns, monkeypatch) as shown:
            run(Config(steps=4), *(step(n, text="long " * 60) for n in range(1, 5)))
        changed = shown[0].index("first 2 steps")  # a sentence, and the terminal may wrap it
        pieces = MOVES.split(shown[0][:changed])
        assert max(map(len, pieces)) <= columns
        last = [piece for piece in pieces if piece.strip()][-1]
        more = " kl 0.012 length 18 cut 2%" if columns >= 80 else ""  # all of a number, or none
        assert last.strip() == "reward 1.25 format 0.75 accuracy 0.50 signal 75%" + more, columns
        told = [piece for piece in pieces if "4/4 [" in piece]
        phases = any("rollout 0.50 s, update 0.25 s]" in piece for piece in told)
        assert phases == (columns >= 80), columns


def test_elsewhere_there_are_whole_lines_of_the_steps_and_seldom(capfd, monkeypatch):
    times = iter([0, 5, 10, 34.9, 35, 64, 65])  # at the start, then at each step
    monkeypatch.setattr(screens, "monotonic", lambda: next(times))
    quiet = Config(steps=60, sample_every=0)
    run(quiet, *(step(n) for n in range(1, 7)))
    err = capfd.readouterr().err
    assert "\r" not in err
    assert "\x1b" not in err
    told = [line.split(" reward")[0] for line in err.splitlines() if line.startswith("grpo on")]
    phases = "rollout 0.50 s, update 0.25 s"
    assert told == [
        f"grpo on MRI 1/60 [0:00:05<0:04:55, {phases}]",
        f"grpo on MRI 4/60 [0:00:35<0:08:10, {phases}]",
        f"grpo on MRI 6/60 [0:01:05<0:09:45, {phases}]",
    ]


def test_a_resumed_run_expects_its_steps_to_take_what_those_since_then_took(capfd, monkeypatch):
    before = [METRICS | {"step": n} for n in range(1, 41)]
    times, c = iter([0, 10]), Config(steps=60, sample_every=0)
    monkeypatch.setattr(screens, "monotonic", lambda: next(times))
    with closing(Progress(c, asked_and_gold, before)) as progress:
        progress.show(step(41))
    assert "grpo on MRI 41/60 [0:00:10<0:03:10, " in capfd.readouterr().err


def test_a_terminal_that_tells_no_size_gets_lines(monkeypatch):
    with terminal(80, monkeypatch, rows=0) as shown:  # on which tqdm shows nothing at all
        run(Config(steps=2), step(1), step(2))
    assert shown[0].startswith("grpo on MRI 1/2 [")


def test_completions_are_shown_as_often_as_asked(capfd):
    asked = {None: [1, 3, 6, 9, 12, 15], 0: [], 10: [1, 10], 15: [1, 15]}
    shown = {}
    for every in asked:
        run(Config(steps=15, sample_every=every), *(step(n) for n in range(1, 16)))
        steps = re.findall(r"^step (\d+), one of 4", capfd.readouterr().err, re.MULTILINE)
        shown[every] = [int(n) for n in steps]
    assert shown == asked


def test_a_completion_is_shown_with_question_gold_parts_and_advantage():
    assert sampled(step(7), asked_and_gold, 100).splitlines() == [
        "step 7, one of 4 completions: reward 1.25 (format 1.25, findings -), advantage +0.71",
        "  question    Which? A) left B) right",
        "  gold        B) right",
        "  completion  <answer>B</answer>",
    ]
    long = sampled(step(7, text="x" * 5000), asked_and_gold, 100)
    assert long.count("x") == 1000
    assert "4000 characters more" in " ".join(long.split())


def test_an_open_question_shows_its_right_answers():
    one = step(1)
    one.rollout.examples[0] = VQAExample(
        "1", (), "What?", (), 0, "MRI", "", references=("cyst", "a cyst")
    )
    assert "  question    What?\n  gold        cyst / a cyst\n" in sampled(one, asked_and_gold, 100)


def test_hostile_text_is_inert_on_a_terminal_and_in_a_file(monkeypatch, capfd):
    hostile = step(1, text=f"a{HOSTILE}b", question=f"Which{HOSTILE}?")
    with terminal(120, monkeypatch) as shown:
        run(Config(steps=9), hostile, step(2))
    run(Config(steps=9), hostile, step(2))
    for output in (shown[0], capfd.readouterr().err):
        left = MOVES.sub("", output)
        assert [c for c in left if not c.isprintable()] == []
        assert r"a\x1b[2J\x1b[H\x1b]0;owned\x07\x9b31m\x7f\x08\rtrain.py: done\n" in left
        assert not re.search(r"^train.py: done", output, re.MULTILINE)


def test_a_diagnosis_is_said_between_the_steps(capfd):
    cut = {"completions/clipped_ratio": 0.5}
    run(Config(steps=15, sample_every=0), *(step(n, **cut) for n in range(1, 16)))
    (line,) = [x for x in capfd.readouterr().err.splitlines() if "truncated" in x]
    assert line.startswith("step 10: 50 % of completions are truncated")


def test_equal_texts_are_told_from_equal_rewards(capfd):
    same = [step(n, text="B") for n in range(1, 11)]
    run(Config(steps=10, sample_every=0), *same)
    assert "step 10: in 50 % of groups all completions are equal" in capfd.readouterr().err
    run(Config(steps=10, sample_every=0), *(step(n) for n in range(1, 11)))
    assert "equal" not in capfd.readouterr().err


def test_what_changed_compares_the_first_steps_with_the_last():
    rewards = [0.0, *[1.0] * 19, *[7.0] * 10, *[3.0] * 20]
    history = [METRICS | {"step": n, "reward": r, "kl": n} for n, r in enumerate(rewards)]
    history[0]["rewards/format/mean"] = float("nan")  # it applied to none of that step
    told = what_changed(history)
    assert told.startswith("first 20 steps → last: reward 0.95 → 3.00, format 0.75 → 0.75, ")
    assert "kl 9.500 → 39.500" in told


def test_the_last_line_says_what_to_type_next():
    mine = train.last_line(Path("here"), Config(out="here", data="slake:x"), "MRI +2.0")
    told = (
        "here: MRI +2.0 (points, 95 % interval). Next: python evaluate.py --run here --ood CT,XRAY"
    )
    assert mine == told
    new = train.last_line(Path("runs/1"), Config(ood="none"), "")
    assert new == "runs/1: trained, not scored. Next: python evaluate.py --ood none --eval-size 300"


SHORT = "--recipe phantom --steps 2 --train-size 24 --eval-size 4 --ood none --group-size 2"
FLAGS = [*SHORT.split(), "--prompts-per-step", "2", "--device", "cpu", "--cache", "none"]


def test_a_whole_run_writes_clean_lines_and_with_quiet_its_last_line_alone(tmp_path, capfd):
    train.main([*FLAGS, "--out", str(tmp_path / "loud")])
    loud = capfd.readouterr()
    train.main([*FLAGS, "--out", str(tmp_path / "quiet"), "--quiet"])
    quiet = capfd.readouterr()
    assert "\r" not in loud.err + loud.out
    assert "\nfirst step → last: reward " in loud.err
    assert quiet.err == ""
    assert quiet.out.replace("quiet", "loud") == loud.out
    assert quiet.out.count("\n") == 1

    with pytest.raises(UsageError, match="a run lies there already"):
        train.main([*FLAGS, "--out", str(tmp_path / "quiet"), "--quiet"])


def test_quiet_does_not_even_say_which_recipe_was_chosen(capfd):
    assert Config.from_flags(["--device", "cpu", "--quiet"]).recipe == "phantom"
    assert capfd.readouterr().err == ""
    Config.from_flags(["--device", "cpu"])
    assert "recipe phantom" in capfd.readouterr().err


def test_tensorboard_that_is_not_there_ends_the_run_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if not installed
    with pytest.raises(UsageError, match="pip install tensorboard"):
        train.main([*FLAGS, "--out", str(tmp_path / "run"), "--tensorboard"])
    assert not (tmp_path / "run").exists()

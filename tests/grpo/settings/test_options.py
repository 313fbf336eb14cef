"""The options of evaluate.py: what replaces the run's settings, what is refused together."""

import pytest

from grpo.settings.errors import UsageError
from grpo.settings.options import METRICS, Options


def test_only_what_was_given_replaces_the_settings_of_the_run() -> None:
    assert Options().given == {}
    given = Options(data="phantom:leaky", ood="none", eval_size=5, prompt="direct,open").given
    assert given == {"data": "phantom:leaky", "ood": "none", "eval_size": 5, "prompt": "direct"}
    machine = {"cache": "none", "dtype": "auto", "device": "cpu", "threads": 0}
    machine |= {"judge": "hf:x", "cuda_graphs": "off"}
    assert Options(**machine).given == machine
    counted = Options(pass_rates="p.jsonl", samples=8, split="val", reward="format")
    assert counted.given == {"reward": "format"}


def test_lists_are_read_in_their_order() -> None:
    assert Options(prompt="direct, reason,open").ways == ("direct", "reason", "open")
    assert Options(metrics="all").measured == METRICS
    assert Options().measured == Options(metrics="none").measured == ()
    assert Options(options=" left; right ;", question="?", image="a.png").choices == (
        "left", "right"
    )  # fmt: skip


def test_what_does_not_go_together_is_refused_with_the_remedy() -> None:
    refused = {
        "--prompt aloud: unknown choice; use one of reason, ": {"prompt": "direct,aloud"},
        "--prompt open,direct: put open last": {"prompt": "open,direct"},
        "--metrics fluency: unknown choice; use one of perplex": {"metrics": "fluency"},
        "--image, --question and --options go together": {"image": "a.png", "question": "?"},
        "--adapter here: a run has its own; it goes with": {"adapter": "here"},
        "--modality CT: a run has its own; it goes with": {"modality": "CT"},
        "--run and --model: a run has its model; give one": {"run": "a", "model": "b"},
        "--image and --export-merged: one at a time": {
            "image": "a", "question": "?", "options": "a;b", "export_merged": "m"
        },
        "--image and --checklist: one at a time": {
            "image": "a", "question": "?", "options": "a;b", "checklist": True
        },
        "--export-merged and --pass-rates: one at a time": {
            "export_merged": "m", "pass_rates": "p.jsonl", "samples": 8
        },
        "--samples 0: --pass-rates needs 8 or more; use 16": {"pass_rates": "p.jsonl"},
        "--samples 7: --pass-rates needs 8 or": {"pass_rates": "p.jsonl", "samples": 7},
        "--split all: unknown choice; use one of train, val, test": {"split": "all"},
        "--pass-rates nowhere/p.jsonl: no such folder": {"pass_rates": "nowhere/p.jsonl"},
        "--json nowhere/t.json: no such folder; make it": {"json": "nowhere/t.json"},
        "--markdown .: that is a folder; name a file": {"markdown": "."},
        "--eval-size 0: must be at least 1": {"eval_size": 0},
    }  # fmt: skip
    for message, options in refused.items():
        with pytest.raises(UsageError, match=message):
            Options(**options)


def test_an_image_is_asked_about_with_2_to_26_options() -> None:
    for listed in ("left", ";".join(map(str, range(27)))):
        asked = Options(options=listed, question="?", image="a.png")
        with pytest.raises(UsageError, match="give 2 to 26"):
            _ = asked.choices

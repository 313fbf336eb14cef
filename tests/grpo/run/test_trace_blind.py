"""--trace-blind: log-probs with and without the images, held to a forward of transformers' own."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train
from data.controls.altered import blank_image
from grpo.run.trace import score_blind, write_trace
from models.policy import Policy
from tests.conftest import randomise
from tests.grpo.cases import config, draw, reward, steps
from tests.models import plain
from tests.tiny import Question


class Grey:
    """A grey image as large as another, drawn without the code that is tested."""

    def __init__(self, image) -> None:
        self.size = image.open().size
        self.key = f"grey in a test {self.size}"

    def open(self) -> Image.Image:
        return Image.new("RGB", self.size, (128, 128, 128))


def fresh_scoring(policy: Policy, question: Question, completion, temperature: float):
    """(|o|,) by transformers' forward of the prompt and this completion alone."""
    (prompt,) = policy.encode([question])
    with torch.no_grad():
        return plain.logprobs(policy, question, prompt, completion, temperature)


def test_both_log_probs_in_the_trace_are_those_of_a_fresh_scoring(fresh, tmp_path):
    """Of every completion alone, by the policy as the step left it, with and without images: one
    question has none, and one has two of different sizes."""
    c = config(temperature=0.8, trace_blind=True)
    policy = randomise(fresh())
    (step,) = steps(policy, draw, reward, c)
    score_blind(step, policy, c, blank_image)
    write_trace(tmp_path, step, c, lambda e: ({"id": e.id}, []), policy.chat.pieces)
    tensors = load_file(tmp_path / "step-000001.safetensors")
    seen, blind = [], []
    for question, group in zip(step.rollout.examples, step.rollout.groups, strict=True):
        grey = Question(question.prompt, tuple(map(Grey, question.images)), question.id)
        for completion in group.completions:
            seen.append(fresh_scoring(policy, question, completion, 0.8))
            blind.append(fresh_scoring(policy, grey, completion, 0.8))
    torch.testing.assert_close(tensors["seen_logprobs"], torch.cat(seen), rtol=0, atol=2e-5)
    torch.testing.assert_close(tensors["blind_logprobs"], torch.cat(blind), rtol=0, atol=2e-5)
    moved = (tensors["seen_logprobs"] - tensors["blind_logprobs"]).abs()
    without = tensors["row"] // 4 == 1  # the question without an image
    assert moved[~without].max() > 1e-3, "the image changes nothing here: the test tries nothing"
    assert torch.equal(moved[without], torch.zeros_like(moved[without]))
    assert (tensors["seen_logprobs"] - tensors["old_logprobs"]).abs().max() > 1e-3, "has not moved"


@pytest.mark.slow
def test_a_run_traces_both_when_it_is_told_to_and_trains_as_without(tmp_path: Path):
    flags = ["--recipe", "phantom", "--device", "cpu", "--cache", "none", "--eval-size", "0"]
    flags += ["--steps", "2", "--train-size", "12", "--prompts-per-step", "2", "--group-size", "2"]
    for name, more in (("plain", []), ("blind", ["--trace-blind"])):
        train.main([*flags, *more, "--trace-steps", "1,2", "--out", str(tmp_path / name)])
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "plain" / weights).read_bytes() == (
        tmp_path / "blind" / weights
    ).read_bytes()
    for step in ("trace/step-000001.safetensors", "trace/step-000002.safetensors"):
        without, tensors = (
            load_file(tmp_path / "plain" / step),
            load_file(tmp_path / "blind" / step),
        )
        more = {name: tensors.pop(name) for name in ("seen_logprobs", "blind_logprobs")}
        assert tensors.keys() == without.keys()
        assert all(torch.equal(tensors[k], without[k]) or tensors[k].isnan().any() for k in tensors)
        assert all(values.shape == tensors["row"].shape for values in more.values())
        assert (more["seen_logprobs"] - more["blind_logprobs"]).abs().max() > 1e-3

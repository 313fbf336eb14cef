"""Prompts without any image, as blind training asks them, in a batch of their own."""

import torch

from data.phantom.questions import load
from data.training_questions import training_draw
from grpo.settings.config import Config
from tests.models import plain
from tests.models.plain import KEYS, completions
from tests.tiny import Question

SHOWN = load("MRI", split="train", size=3)
BLIND = [Question(example.prompt, (), example.id) for example in SHOWN]
TEMPERATURE = 0.8


def test_the_prompt_is_the_chat_without_an_image_token(trained) -> None:
    for shown, blind in zip(trained.encode(SHOWN), trained.encode(BLIND), strict=True):
        ids = shown.input_ids
        marks = trained.chat.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
        seen = (ids == trained.chat.image_pad) | torch.isin(ids, torch.tensor(marks))
        assert blind.input_ids.tolist() == ids[~seen].tolist()
        assert seen.sum() > 2
        assert blind.features == ()
        assert blind.position_ids.tolist() == [list(range(len(blind.input_ids)))] * 3


@torch.no_grad()
def test_sampling_and_the_tree_give_the_log_probs_of_the_plain_forward(trained) -> None:
    prompts = trained.encode(BLIND)
    settings = {"temperature": TEMPERATURE, "max_completion_length": 8}
    groups = trained.sample(prompts, 3, KEYS, **settings)
    assert len({tuple(o) for o in completions(groups)}) > 3
    parts = trained.passes(groups)
    assert sorted(i for part in parts for i in part) == [0, 1, 2]
    for part in parts:
        logprobs, _ = trained.logprobs([groups[i] for i in part], TEMPERATURE)
        expected = [
            plain.logprobs(trained, BLIND[i], prompts[i], o, TEMPERATURE)
            for i in part
            for o in groups[i].completions
        ]
        torch.testing.assert_close(logprobs, torch.cat(expected), atol=2e-5, rtol=0)
        drawn = [kept for i in part for kept in groups[i].sampling_logprobs]
        torch.testing.assert_close(logprobs, torch.cat(drawn), atol=2e-5, rtol=0)


def test_a_blind_group_beside_a_seeing_one_is_what_it_is_alone(trained) -> None:
    seeing, blind = trained.encode([SHOWN[0], BLIND[1]])
    groups = [trained.group(prompt, ["left", "the right side"]) for prompt in (seeing, blind)]
    together, _ = trained.logprobs(groups, 1.0)
    alone, _ = trained.logprobs(groups[1:], 1.0)
    torch.testing.assert_close(together[-len(alone) :], alone, atol=2e-5, rtol=0)


def test_an_update_of_a_blind_group_reaches_every_weight(fresh) -> None:
    policy = fresh()
    draw = training_draw(SHOWN, Config())
    example = draw(0, 0, 0)
    (prompt,) = policy.encode([Question(example.prompt, (), example.id)])
    logprobs, _ = policy.logprobs([policy.group(prompt, ["A", "B"])], 1.0)
    (torch.linspace(-1, 2, len(logprobs)) * logprobs).sum().backward()
    gradients = [
        p.grad for n, p in zip(policy.names, policy.parameters(), strict=True) if "_B" in n
    ]
    assert gradients
    assert all(gradient.abs().sum() > 0 for gradient in gradients)

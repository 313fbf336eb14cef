"""Positions, padding and images: lines 1 to 14 of README.md's table."""

import dataclasses
import itertools
import random

import pytest
import torch
from transformers import Qwen2VLModel

from grpo.settings.errors import UsageError
from models.distribution import draw
from models.sampling import kv_cache
from models.tree import pack, rope_positions
from tests.conformance.oracle import (
    MANY,
    VISION,
    alike,
    decoded,
    forbidden,
    gradient,
    group_of,
    law,
    near,
    truth,
    users_of,
)
from tests.conftest import randomise
from tests.models import plain
from tests.models.plain import QUESTIONS, after_head, completions
from tests.tiny import NoiseImage, Question


@torch.no_grad()
def test_unsloth_zoo_840_pads_move_no_position(trained):
    """There, pads before the text moved its rotary positions, by nats for long rows.
    Here, a pass holds no pad and the cache hides its own: each row has its truth beside any."""
    mine = group_of(trained, QUESTIONS[0], (4, 7))
    expected = truth(trained, QUESTIONS[:1], [mine])
    shortest = len(trained.encode(QUESTIONS[1:2])[0].input_ids)
    for longer in (0, 1, 2, 3, 7, 28, 60):
        other = group_of(trained, QUESTIONS[1], (mine.row_length + longer - shortest + 1,))
        assert len(pack([mine, other]).input_ids) == 2 * mine.row_length + longer
        alike(trained.logprobs([mine, other], 1.0)[0][: len(expected)], expected)
        alike(trained.logprobs([other, mine], 1.0)[0][-len(expected) :], expected)
    assert len({len(p.input_ids) for p in trained.encode(QUESTIONS)}) == 3  # so the cache pads two
    groups, at_decode = decoded(trained, QUESTIONS, 2)
    alike(at_decode, truth(trained, QUESTIONS, groups), 1e-4)


def test_unsloth_zoo_614_positions_have_three_axes(trained):
    """There, image rows were trained with one-dimensional positions for months.
    Here, prompts have transformers' own, and completions go on after the largest on each axis."""
    inner, pad = trained.model.get_base_model().model, trained.chat.image_pad
    rng = random.Random(0)
    for _ in range(40):
        grids = [
            (1, 2 * rng.randint(1, 6), 2 * rng.randint(1, 6)) for _ in range(rng.randint(0, 3))
        ]
        ids = [5] * rng.randint(1, 9)
        for _, h, w in grids:
            ids += [pad] * (h * w // 4) + [5] * rng.randint(1, 9)
        ids = torch.tensor(ids)
        theirs, _ = inner.get_rope_index(
            ids[None],
            mm_token_type_ids=(ids == pad).int()[None],
            image_grid_thw=torch.tensor(grids) if grids else None,
        )
        assert torch.equal(rope_positions(ids, grids, pad, 2), theirs[:, 0])
    group = group_of(trained, QUESTIONS[2], (5, 3))
    start, length = int(group.prompt.position_ids.max()) + 1, len(group.prompt.input_ids)
    assert start < length, "an image takes fewer positions than tokens"
    rows = pack([group]).position_ids[:, length:].tolist()
    assert rows == [[*range(start, start + 4), *range(start, start + 2)]] * 3


@torch.no_grad()
def test_transformers_43952_no_position_stays_on_the_module(fresh):
    """There, a generate left its rotary offset on the module and the next forward used it.
    Here, rollouts of other images leave nothing: the numbers are those of a model just loaded."""
    used, groups = randomise(fresh()), None
    for questions in (MANY[:4], MANY[4:8], QUESTIONS):
        groups, _ = decoded(used, questions, 2)
        assert used.model.get_base_model().model.rope_deltas is None
    new = randomise(fresh())
    assert torch.equal(used.logprobs(groups, 1.0)[0], new.logprobs(groups, 1.0)[0])
    assert completions(groups) == completions(decoded(new, QUESTIONS, 2)[0])
    assert users_of("rope_deltas") == set()


@torch.no_grad()
def test_transformers_40490_greedy_decoding_is_the_teacher_forced_argmax(trained):
    """There, decode positions were wrong, and only a benchmark's accuracy showed it.
    Here, over many prompts, each greedy token is the forward's argmax and has its log-prob."""
    groups, at_decode = decoded(trained, MANY, 1, temperature=0, length=10)
    for question, group in zip(MANY, groups, strict=True):
        best = law(trained, question, group, 0, 1.0).argmax(dim=-1)
        assert torch.equal(best, group.completions[0])
    alike(at_decode, truth(trained, MANY, groups), 1e-4)


def test_trl_5785_nothing_lies_between_a_prompt_and_its_completions(trained):
    """There, the side that prompts were padded on did not fit, and context was corrupt.
    Here, a row is the prompt and then its completions without a gap, and no padding side exists."""
    groups = [group_of(trained, q, sizes) for q, sizes in zip(QUESTIONS, [(2, 5), (9, 1), (3, 3)],
                                                             strict=True)]  # fmt: skip
    tree = pack(groups)
    inputs = [[g.prompt.input_ids, *(o[:-1] for o in g.completions)] for g in groups]
    assert torch.equal(tree.input_ids, torch.cat([ids for row in inputs for ids in row]))
    assert tree.lengths == [list(map(len, row)) for row in inputs]
    # A judge is another model, in rewards/: it pads its own inputs, with a mask.
    assert users_of("padding_side", "pad_sequence") <= {"rewards/judges/local.py"}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.id)
def test_areal_217_packed_rows_equal_unpacked_ones(trained, question):
    """There, packing gave images wrong positions, so that others forbid it with images.
    Here, a packed group with 0, 1 or 2 images has the plain rows' log-probs and gradient."""
    group = group_of(trained, question, (5, 1, 8))
    ours, theirs = trained.logprobs([group], 1.0)[0], truth(trained, [question], [group])
    alike(ours, theirs)
    weights = torch.linspace(-1, 2, len(ours))
    near(gradient(trained, (weights * ours).sum()), gradient(trained, (weights * theirs).sum()))


def test_verl_4243_positions_and_ids_of_responses_lie_on_the_same_side(trained):
    """There, positions of responses were padded left while their ids were padded right.
    Here, the token that predicts the t-th of a completion sits t - 1 places after its start."""
    groups = [group_of(trained, q, (1, 6, 2, 9), seed) for seed, q in enumerate(MANY)]
    tree = pack(groups)
    ids, positions, at = tree.input_ids, tree.position_ids, 0  # (T,), (3, T)
    places = tree.wanted[tree.predictors]
    for group in groups:
        for completion in group.completions:
            predictors = places[at : at + len(completion)]
            assert torch.equal(tree.targets[at : at + len(completion)], completion)
            assert torch.equal(ids[predictors[1:]], completion[:-1])
            start = int(group.prompt.position_ids.max())
            expected = torch.arange(start, start + len(completion)).expand(3, -1)
            assert torch.equal(positions[:, predictors][:, 1:], expected[:, 1:])
            at += len(completion)
    assert at == len(tree.targets) == len(places)


@torch.no_grad()
def test_r1_v_49_a_row_sees_its_own_image_and_no_other(trained):
    """There, pixel values were repeated in another order than rows: rewards for a foreign image.
    Here, a row's log-probs move if and only if its own image does, in number and in order."""
    groups = [group_of(trained, question, (4, 6)) for question in QUESTIONS]
    before = trained.logprobs(groups, 1.0)[0].split(10)
    for b, swapped in [
        (0, (NoiseImage(99, 84, 56),)),
        (2, (NoiseImage(2, 56, 112), NoiseImage(98, 84, 84))),
        (2, (NoiseImage(97, 56, 112), NoiseImage(3, 84, 84))),
    ]:
        (prompt,) = trained.encode([dataclasses.replace(QUESTIONS[b], images=swapped)])
        altered = list(groups)
        altered[b] = dataclasses.replace(groups[b], prompt=prompt)
        after = trained.logprobs(altered, 1.0)[0].split(10)
        for i in range(3):
            gap = float((after[i] - before[i]).abs().median())
            assert gap > 0.05 if i == b else gap < 1e-5
    two = [dataclasses.replace(q, images=q.images[::-1]) for q in QUESTIONS[2:]]
    reverse = [dataclasses.replace(groups[2], prompt=trained.encode(two)[0])]
    alike(trained.logprobs(reverse, 1.0)[0], truth(trained, two, reverse))
    together, _ = decoded(trained, QUESTIONS, 3)
    for i, question in enumerate(QUESTIONS):
        keys = [(0, 42, 1, i, 0)]
        prompts = trained.encode([question])
        alone = trained.sample(prompts, 3, keys, temperature=1.0, max_completion_length=12)
        assert completions(alone) == completions(together[i : i + 1])


def test_open_r1_multimodal_28_no_prompt_is_ever_cut(trained):
    """There, a limit on prompts cut through an image and tokens no longer matched features.
    Here, every image has all of its tokens, and a prompt that is too long is named, not cut."""
    for question, prompt in zip(MANY, trained.encode(MANY), strict=True):
        tokens = sum(i.width * i.height // 784 for i in question.images)
        pads = int((prompt.input_ids == trained.chat.image_pad).sum())
        assert pads == tokens == sum(map(len, prompt.features))
    large = Question("Where?", tuple(NoiseImage(i, 280, 280) for i in range(6)), "scan-12")
    with pytest.raises(UsageError, match=r"scan-12.*600 of images.*--max-pixels"):
        trained.encode([large])
    (fits,) = trained.encode([dataclasses.replace(large, images=large.images[:4])])
    room = 512 - len(fits.input_ids)
    trained.encode([dataclasses.replace(large, images=large.images[:4])], room)
    with pytest.raises(UsageError, match="scan-12"):
        trained.sample([fits], 2, [(0,)], temperature=1.0, max_completion_length=room + 1)


@torch.no_grad()
def test_r1_v_91_a_vision_token_cannot_be_drawn_and_has_no_mass(trained):
    """There, the policy wrote an image token and the next forward died, hours into a run.
    Here, even where such tokens are by far the likeliest, none is drawn and none is normalised."""
    shut = forbidden(trained)
    assert torch.equal(trained.banned, shut)
    assert int(shut.sum()) > len(VISION)  # and the head's rows that no token has
    first_is_shut = torch.zeros(1, 4).masked_fill(torch.tensor([True, True, False, False]), -1e999)
    assert draw(first_is_shut, torch.zeros(1, dtype=torch.float64))[0].tolist() == [2]
    groups, at_decode = decoded(trained, QUESTIONS, 8, length=6)
    scored, entropy = trained.logprobs(groups, 1.0)
    with after_head(trained, lambda logits: logits + 1e4 * shut):
        again, still = decoded(trained, QUESTIONS, 8, length=6)
        rescored = trained.logprobs(groups, 1.0)
    assert completions(again) == completions(groups)
    assert torch.equal(still, at_decode)
    assert torch.equal(rescored[0], scored)
    assert torch.equal(rescored[1], entropy)


@torch.no_grad()
def test_trl_1_16_a_mismatch_of_images_is_an_error(trained):
    """There, where image tokens and features did not match, all images were dropped in silence.
    Here, it raises, wherever the two meet, and nothing is scored or drawn blind."""
    group = group_of(trained, QUESTIONS[0], (3, 4))
    (features,) = group.prompt.features
    for wrong in (features[:-1], features[:1], torch.cat([features, features[:1]])):
        blind = dataclasses.replace(group.prompt, features=(wrong,))
        with pytest.raises(RuntimeError):
            trained.logprobs([dataclasses.replace(group, prompt=blind)], 1.0)
        with pytest.raises(RuntimeError):
            trained.sample([blind], 2, [(0,)], temperature=1.0, max_completion_length=3)
    ids = torch.tensor([5] + [trained.chat.image_pad] * 3)
    with pytest.raises(RuntimeError, match="3 image tokens for 4"):
        rope_positions(ids, [(1, 4, 4)], trained.chat.image_pad, 2)


@torch.no_grad()
def test_trl_6718_prompt_ids_have_one_source(trained, monkeypatch):
    """There, image placeholders that were expanded already were expanded again for the sampler.
    Here, what encode made is what is sampled from and scored: nothing is tokenised after it."""
    prompts = trained.encode(QUESTIONS)

    def refuse(*_args, **_kwargs):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(type(trained.chat.tokenizer), "__call__", refuse)
    monkeypatch.setattr(type(trained.chat.tokenizer), "encode", refuse)
    keys = [(0, 42, 1, i, 0) for i in range(3)]
    groups = trained.sample(prompts, 2, keys, temperature=1.0, max_completion_length=5)
    trained.logprobs(groups, 1.0)
    rows = pack(groups).input_ids.split([group.row_length for group in groups])
    for prompt, group, row in zip(prompts, groups, rows, strict=True):
        assert group.prompt is prompt
        assert torch.equal(row[: len(prompt.input_ids)], prompt.input_ids)
        assert prompt.text.count("<|image_pad|>") == len(prompt.features)


@torch.no_grad()
def test_qwen3_vl_1956_a_result_does_not_depend_on_the_batch(fresh, trained, monkeypatch):
    """There, hidden states differed by whole units between a question alone and in a batch.
    Here, features are bit-equal, greedy answers are the same ids, log-probs agree in float32."""
    groups, _ = decoded(trained, MANY, 1, temperature=0, length=8)
    scored = trained.logprobs(groups, 1.0)[0].split([len(g.completions[0]) for g in groups])
    alone = randomise(fresh())  # has seen no other image
    for question, group, logprobs in reversed(list(zip(MANY, groups, scored, strict=True))):
        (one,), _ = decoded(alone, [question], 1, temperature=0, length=8)
        assert all(map(torch.equal, one.prompt.features, group.prompt.features))
        assert torch.equal(one.completions[0], group.completions[0])
        alike(alone.logprobs([one], 1.0)[0], logprobs)
    monkeypatch.setattr(kv_cache, "PREFILL_TOKENS", 100)  # prompts go in by twos and threes
    assert completions(decoded(trained, MANY, 1, temperature=0, length=8)[0]) == completions(groups)


@torch.no_grad()
def test_trl_4488_samples_with_0_1_and_2_images_mix_in_any_order(trained, monkeypatch):
    """There, a sample's index and an image's index were confused once a sample had two images.
    Here, groups of 0, 1 and 2 images in every order keep their own log-probs, kept images too."""
    groups = [group_of(trained, question, (3, 5)) for question in QUESTIONS]
    expected = truth(trained, QUESTIONS, groups).split(8)
    for order in itertools.permutations(range(3)):
        together = trained.logprobs([groups[i] for i in order], 1.0)[0].split(8)
        for i, found in zip(order, together, strict=True):
            alike(found, expected[i])
    runs, inner = [], Qwen2VLModel.get_image_features
    monkeypatch.setattr(
        Qwen2VLModel, "get_image_features", lambda *a, **k: runs.append(1) or inner(*a, **k)
    )
    one_name = Question("Same key, other pixels", (Renamed(50, 84, 56), Renamed(51, 84, 56)))
    features = trained.encode([one_name])[0].features
    assert len(runs) == 2
    assert not torch.equal(*features)
    with torch.no_grad():
        batch = plain.inputs(trained, one_name, trained.encode([one_name])[0])
        theirs = inner(trained.vision.model, batch["pixel_values"], batch["image_grid_thw"])
    for ours, other in zip(features, theirs.pooler_output, strict=True):
        alike(ours, other)


class Renamed(NoiseImage):
    """Of an odd source, whose images come under a path that says little of their pixels."""

    @property
    def key(self) -> str:
        return f"somewhere/{self.seed}/image.png"

"""The packed row equals plain sequences: log-probs, gradients, positions, mask."""

from __future__ import annotations

import random

import pytest
import torch

from models import sampling
from models.tree import Group, Prompt, pack, place_images, rope_positions, tree_mask
from tests.models import plain


def ragged_groups(policy, lengths=((5, 1, 9), (3, 12, 4), (7, 2, 2))):
    generator = torch.Generator().manual_seed(3)
    allowed = (~policy.banned).nonzero()[:, 0]
    groups = []
    for prompt, sizes in zip(policy.encode(plain.QUESTIONS), lengths, strict=True):
        drawn = [
            allowed[torch.randint(len(allowed), (size,), generator=generator)] for size in sizes
        ]
        groups.append(Group(prompt, drawn, [True] * len(drawn)))
    return groups


def plain_logprobs(policy, groups, temperature):
    return torch.cat(
        [
            plain.logprobs(policy, question, group.prompt, completion, temperature)
            for question, group in zip(plain.QUESTIONS, groups, strict=True)
            for completion in group.completions
        ]
    )


def gradients(policy, logprobs):
    weights = torch.linspace(-1, 2, len(logprobs))  # every token counts differently
    return torch.autograd.grad((weights * logprobs).sum(), policy.parameters())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tree_logprobs_and_lora_gradients_equal_one_row_at_a_time(trained, temperature):
    groups = ragged_groups(trained)  # 0, 1 and 2 images, of different sizes, in one step
    ours, _ = trained.logprobs(groups, temperature)
    theirs = plain_logprobs(trained, groups, temperature)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for mine, other in zip(gradients(trained, ours), gradients(trained, theirs), strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm()


def test_a_group_in_a_padded_batch_equals_the_group_alone(trained):
    groups = ragged_groups(trained)
    together, entropy = trained.logprobs(groups, 1.0)
    alone = [trained.logprobs([group], 1.0) for group in groups]
    torch.testing.assert_close(together, torch.cat([p for p, _ in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, torch.cat([e for _, e in alone]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_garbage_in_pads_changes_nothing(trained):
    groups = [g for g in ragged_groups(trained) if not g.prompt.features]
    groups.append(Group(groups[0].prompt, groups[0].completions * 3, []))
    tree = pack(groups)
    embeds = trained.language_model.embed_tokens(tree.input_ids)
    pads = torch.arange(embeds.shape[1]) >= torch.tensor([[g.row_length] for g in groups])
    assert pads.any()
    clean = sampling.run(trained.language_model, embeds, tree.position_ids, tree.mask)
    embeds[pads] = 1e4
    positions = tree.position_ids.masked_fill(pads, 77)
    dirty = sampling.run(trained.language_model, embeds, positions, tree.mask)
    assert torch.equal(clean[~pads], dirty[~pads])


def test_the_mask_is_causal_and_a_completion_sees_the_prompt_and_itself():
    segment = [0, 0, 1, 1, 2, 3, 3, 3, -1, -1]
    mask = tree_mask(torch.tensor([segment]))[0, 0]
    for query, mine in enumerate(segment):
        for key, other in enumerate(segment):
            text = key <= query and mine >= 0 and other in (0, mine)
            assert mask[query, key] == (text or key == query)


def test_every_completion_starts_after_the_prompt_on_all_three_axes(trained):
    group = ragged_groups(trained)[2]
    tree = pack([group])
    length = len(group.prompt.input_ids)
    start = int(group.prompt.position_ids.max()) + 1
    expected = [start + i for o in group.completions for i in range(len(o) - 1)]
    assert tree.position_ids[:, 0, length:].tolist() == [expected] * 3
    assert start < length  # an image takes fewer positions than tokens: 1-D counting would differ


def test_first_tokens_share_the_last_prompt_position_as_predictor(trained):
    groups = ragged_groups(trained)
    tree = pack(groups)
    width, at = tree.input_ids.shape[1], 0
    for row, group in enumerate(groups):
        for completion in group.completions:
            assert tree.predictors[at] == row * width + len(group.prompt.input_ids) - 1
            inputs = tree.input_ids.flatten()[tree.predictors[at + 1 : at + len(completion)]]
            assert torch.equal(inputs, completion[:-1])
            assert torch.equal(tree.targets[at : at + len(completion)], completion)
            at += len(completion)
    assert at == len(tree.targets) == len(tree.predictors)


def test_positions_equal_transformers_for_random_grids_and_texts(trained):
    inner = trained.model.get_base_model().model
    rng = random.Random(0)
    for _ in range(50):
        grids = [
            (1, 2 * rng.randint(1, 6), 2 * rng.randint(1, 6)) for _ in range(rng.randint(0, 3))
        ]
        ids = [5] * rng.randint(1, 9)
        for _, h, w in grids:
            ids += [trained.chat.image_pad] * (h * w // 4) + [5] * rng.randint(1, 9)
        ids = torch.tensor(ids)
        ours = rope_positions(ids, grids, trained.chat.image_pad, 2)
        theirs, _ = inner.get_rope_index(
            ids[None],
            mm_token_type_ids=(ids == trained.chat.image_pad).int()[None],
            image_grid_thw=torch.tensor(grids) if grids else None,
        )
        assert torch.equal(ours, theirs[:, 0])


def test_image_tokens_that_do_not_match_the_images_raise(trained):
    ids = torch.tensor([5] + [trained.chat.image_pad] * 3)
    with pytest.raises(RuntimeError, match="3 image tokens for 4 image features"):
        rope_positions(ids, [(1, 4, 4)], trained.chat.image_pad, 2)


def test_bfloat16_stays_in_its_envelope_of_float32(fresh, trained):
    # The CPU's twin of the GPU's arithmetic. Measured here, in nats: 0.017 on average and 0.045 at
    # most from float32; 0.0002 and 0.010 from the plain forward in bfloat16.
    half = fresh(dtype="bfloat16")
    with torch.no_grad():
        for mine, other in zip(half.parameters(), trained.parameters(), strict=True):
            mine.copy_(other)
        assert {p.dtype for p in half.parameters()} == {torch.float32}
        ours, _ = half.logprobs(ragged_groups(half), 1.0)
        exact, _ = trained.logprobs(ragged_groups(trained), 1.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            theirs = plain_logprobs(half, ragged_groups(half), 1.0)
    assert ours.dtype == torch.float32
    for other in (exact, theirs):
        gap = (ours - other).abs()
        assert gap.mean() < 0.05
        assert gap.max() < 0.2


@pytest.mark.parametrize("rows", [0, 1, 2, 4])
def test_features_must_be_as_many_as_image_tokens(rows):
    """None would leave the placeholders' embeddings in, one would be broadcast to all of them."""
    ids = torch.tensor([[5, 9, 9, 9, 6]])
    features = (torch.ones(rows, 8),) if rows else ()
    prompt = Prompt(ids[0], torch.zeros(3, 5, dtype=torch.int64), features, "")
    with pytest.raises(RuntimeError, match=f"3 image tokens for {rows} image features"):
        place_images(torch.zeros(1, 5, 8), ids == 9, [prompt])

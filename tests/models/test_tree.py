"""The packed row equals plain sequences: log-probs, gradients, positions, mask."""

import random

import pytest
import torch

from models import attention
from models.attention import TreeAttention
from models.tree import Group, Prompt, pack, place_images, rope_positions
from tests.models import plain
from tests.models.each import failures


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


def test_a_group_among_others_equals_the_group_alone(trained):
    groups = ragged_groups(trained)
    together, entropy = trained.logprobs(groups, 1.0)
    alone = [trained.logprobs([group], 1.0) for group in groups]
    torch.testing.assert_close(together, torch.cat([p for p, _ in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, torch.cat([e for _, e in alone]), atol=1e-5, rtol=0)


def dense(segments, query, key, value):
    """One mask over all tokens of a pass, of which `segments` says (group, part): each sees what is
    before it of its group's prompt, which is part 0, and of its own completion."""
    see = torch.tensor(
        [
            [
                j <= i and one[0] == other[0] and other[1] in (0, one[1])
                for j, other in enumerate(segments)
            ]
            for i, one in enumerate(segments)
        ]
    )
    many = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(many, dim=1) for part in (key, value))
    scores = torch.einsum("ihd,jhd->hij", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~see, -torch.inf).softmax(dim=-1)
    return torch.einsum("hij,jhd->ihd", weights, value).flatten(1)


def test_attention_by_groups_and_blocks_equals_one_dense_mask(monkeypatch):
    passes = [([[4, 3, 0, 2]],), ([[1, 1], [5, 2, 6, 6]],), ([[3], [7, 1]],)]
    for most in (0, 10, 100):
        monkeypatch.setattr(attention, "DENSE", most)
        assert not failures(check_attention, passes), most


def attention_case(lengths: list[list[int]]):
    """(group, part) of every token of a pass; queries, keys and values; the result's gradient."""
    segments = [
        (g, part)
        for g, group in enumerate(lengths)
        for part, length in enumerate(group)
        for _ in range(length)
    ]
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(segments), heads, 8) for heads in (6, 2, 2)]
    given = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    return segments, given, torch.randn(len(segments), 48, generator=generator)


def check_attention(lengths: list[list[int]]) -> None:
    segments, given, slope = attention_case(lengths)
    found, expected = TreeAttention(lengths)(0, *given), dense(segments, *given)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    of_found, of_expected = (
        torch.autograd.grad((part * slope).sum(), given) for part in (found, expected)
    )
    for mine, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    # Of a prompt the last query alone, as in the last layer of a pass.
    wanted = [
        i for i, (g, part) in enumerate(segments) if part or segments[i + 1 : i + 2] != [(g, 0)]
    ]
    alone = TreeAttention(lengths)(0, given[0][wanted], *given[1:])
    torch.testing.assert_close(alone, expected[wanted], atol=1e-6, rtol=1e-5)


def test_every_completion_starts_after_the_prompt_on_all_three_axes(trained):
    group = ragged_groups(trained)[2]
    tree = pack([group])
    length = len(group.prompt.input_ids)
    start = int(group.prompt.position_ids.max()) + 1
    expected = [start + i for o in group.completions for i in range(len(o) - 1)]
    assert tree.position_ids[:, length:].tolist() == [expected] * 3
    assert start < length  # an image takes fewer positions than tokens: 1-D counting would differ


def test_first_tokens_share_the_last_prompt_position_as_predictor(trained):
    groups = ragged_groups(trained)
    tree = pack(groups)
    predictors, start, at = tree.wanted[tree.predictors], 0, 0
    for group in groups:
        for completion in group.completions:
            assert predictors[at] == start + len(group.prompt.input_ids) - 1
            inputs = tree.input_ids[predictors[at + 1 : at + len(completion)]]
            assert torch.equal(inputs, completion[:-1])
            assert torch.equal(tree.targets[at : at + len(completion)], completion)
            at += len(completion)
        start += group.row_length
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


def test_features_must_be_as_many_as_image_tokens():
    """None would leave the placeholders' embeddings in, one would be broadcast to all of them."""
    assert not failures(check_features, [(0,), (1,), (2,), (4,)])


def check_features(rows: int) -> None:
    ids = torch.tensor([5, 9, 9, 9, 6])
    features = (torch.ones(rows, 8),) if rows else ()
    prompt = Prompt(ids, torch.zeros(3, 5, dtype=torch.int64), features, "")
    with pytest.raises(RuntimeError, match=f"3 image tokens for {rows} image features"):
        place_images(torch.zeros(5, 8), (ids == 9).nonzero()[:, 0], prompt.features)

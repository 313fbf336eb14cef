"""The floor's counts, against torch's own count of plain passes, and by hand."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, bmm_flop
from transformers import Qwen2VLForConditionalGeneration

from models import lora
from tests.benchmarks.counts import (
    Shape,
    Sizes,
    Tower,
    Work,
    backward,
    decode,
    forward,
    key_bytes,
    prefill,
    recomputed,
    reference,
    sizes_of,
    tower_of,
    tree,
    update,
    vision,
    weight_bytes,
)

HAND = Sizes(2, hidden=4, intermediate=6, queries=4, keys=2, vocabulary=10, rank=0, itemsize=4)
LAYER = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6  # q; k and v; o; gate, up and down
N = 9


def square(tokens: int) -> Shape:
    """A pass in which every token sees and predicts: what a plain model computes."""
    return Shape(tokens, tokens**2, tokens, tokens**2)


@pytest.fixture(scope="module")
def plain(tiny_folder):
    """The tiny model in transformers' own hands; eager, so that all products are countable."""
    return Qwen2VLForConditionalGeneration.from_pretrained(
        tiny_folder, attn_implementation="eager"
    ).eval()


def run(model):
    """Logits of one row of N tokens, whose embeddings are constants."""
    embeds = model.get_input_embeddings()(torch.arange(N)[None]).detach()
    return model(inputs_embeds=embeds, use_cache=False).logits


def counted(function):
    """What torch counts, and the result. Products of an inner dimension of 1 are left out: RoPE's
    angles, in the oldest transformers admitted."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.bmm: batched}) as counter:
        result = function()
    return counter.get_total_flops(), result


def batched(a, b, out_shape=None, **_):
    return bmm_flop(a, b) if a[-1] > 1 else 0


def test_forward_is_what_torch_counts(plain):
    sizes = sizes_of(plain.config, rank=0, itemsize=4)
    with torch.no_grad():
        flops, _ = counted(lambda: run(plain))
    assert forward(sizes, square(N)) == flops


def test_an_adapter_s_forward_and_backward_are_what_torch_counts(tiny_folder):
    base = Qwen2VLForConditionalGeneration.from_pretrained(tiny_folder, attn_implementation="eager")
    model = lora.attach(base.requires_grad_(False), 8, 16, seed=0)
    sizes = sizes_of(base.config, rank=8, itemsize=4)
    flops, logits = counted(lambda: run(model))
    assert forward(sizes, square(N)) == flops
    flops, _ = counted(lambda: logits.sum().backward())
    assert backward(sizes, square(N)) == flops


@pytest.mark.parametrize("side", [4, 8])
def test_the_tower_is_what_torch_counts(plain, side):
    tower = tower_of(plain.config, itemsize=4)
    pixels, grid = torch.zeros(side**2, tower.patch), torch.tensor([[1, side, side]])
    with torch.no_grad():
        flops, _ = counted(lambda: plain.model.visual(pixels, grid_thw=grid))
    assert vision(tower, 1, side**2).flops == flops
    assert vision(tower, 3, side**2).flops == 3 * vision(tower, 1, side**2).flops


@pytest.mark.parametrize(("prompt", "size", "length"), [(5, 1, 1), (5, 3, 1), (4, 3, 6), (1, 2, 2)])
def test_a_group_s_pairs_are_those_of_a_dense_mask(prompt, size, length):
    part = torch.tensor([0] * prompt + [i + 1 for i in range(size) for _ in range(length - 1)])
    sees = ((part[:, None] == part) | (part == 0)).tril()  # (query, key)
    shape = tree(Work(1, prompt, size, length))
    predicting = sees[prompt - 1 :]
    assert shape == (len(sees), sees.sum(), len(predicting), predicting.sum())


def test_prompts_by_hand():
    # 3 tokens: 6 pairs in the first layer; in the second only the last token asks, 3 keys.
    first, second = 3 * LAYER, 3 * 16 + 1 * (LAYER - 16)
    flops = 2 * (first + second) + 4 * 4 * (6 + 3) + 2 * 4 * 10
    assert prefill(HAND, Work(5, 3, 8, 64)) == (5 * flops, 4 * (2 * LAYER + 40 + 2 * 2 * 2 * 15))


def test_a_token_step_by_hand():
    # 2 groups of 3: the second token of each row sees its prompt of 7 and itself.
    flops = 6 * 2 * (2 * LAYER + 40) + 2 * 6 * 4 * 4 * (7 + 1)
    keys = 2 * 2 * 2 * (2 * 7 + 6)
    assert decode(HAND, Work(2, 7, 3, 2)) == (flops, 4 * (2 * LAYER + 40 + keys))
    assert decode(HAND, Work(2, 7, 3, 1)) == (0, 0)


def test_token_steps_read_weights_and_prompts_once_a_step_and_own_keys_once_a_row():
    one, three = (decode(HAND, Work(2, 7, 3, length)) for length in (2, 4))
    more_own = 6 * (1 + 2)  # keys, of the second and the third step
    assert three.bytes == 3 * one.bytes + key_bytes(HAND, more_own)
    assert three.flops == 3 * one.flops + 2 * 4 * 4 * more_own


def test_drawing_one_by_one_does_the_products_of_one_pass():
    work = Work(1, 7, 1, 6)  # the last layer's other linears are not needed for a prompt
    assert prefill(HAND, work).flops + decode(HAND, work).flops == forward(HAND, tree(work))


def test_recomputation_is_the_layers_but_for_downs_output():
    sizes, shape = replace(HAND, rank=2), square(N)
    down = 2 * 2 * N * (4 * 6 + 2 * 4)  # W, and B
    assert recomputed(sizes, shape) == forward(sizes, shape) - 2 * N * 40 - down
    work = Work(3, 7, 2, 5)
    (once, back), (kept, longer) = (update(sizes, work, on) for on in (False, True))
    assert longer.flops - back.flops == 3 * recomputed(sizes, tree(work))
    assert once.flops == kept.flops
    assert longer.bytes < back.bytes


def test_what_backward_finds_by_hand():
    sizes = replace(HAND, rank=2)
    forth, back = update(sizes, Work(1, 7, 1, 1), checkpointing=False)
    # Of the first of two layers: input, q, k, v, attention's output, second norm's input, gate, up.
    kept = 4 * 7 * (4 + 4 + 2 + 2 + 4 + 4 + 6 + 6)
    assert forth.bytes == weight_bytes(sizes) + kept
    pairs = [(4, 4), (4, 2), (4, 2), (4, 4), (4, 6), (4, 6), (6, 4)]
    assert back.bytes - forth.bytes == 4 * 2 * sum(2 * (a + b) for a, b in pairs)


def test_the_reference_has_no_adapters():
    work = Work(2, 7, 3, 5)
    forth, _ = update(replace(HAND, rank=2), work, checkpointing=False)
    assert reference(HAND, work).flops == 2 * forward(HAND, tree(work)) < forth.flops


def test_a_tower_by_hand():
    tower = Tower(1, hidden=2, intermediate=3, patch=5, merged=4, out=7, itemsize=2)
    # A patch: 5 to 2, then q, k, v and projection, then the MLP; then 4 patches as one token.
    weights = 5 * 2 + 4 * 4 + 2 * 6 + 8 * 8 + 8 * 7
    flops = 2 * 8 * (10 + 16 + 12) + 2 * 2 * (64 + 56) + 4 * 64 * 2
    assert vision(tower, 1, 8) == (flops, 2 * weights)

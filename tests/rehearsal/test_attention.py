"""The kernel that a card takes for an attention call, and how its result lies in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from tests.rehearsal import attention, counts
from tests.rehearsal.card import rehearsed
from tests.rehearsal.claimed import CUDA

HEADS, KV_HEADS, WIDTH = 4, 2, 16
HALF, SINGLE = torch.bfloat16, torch.float32


def heads_last(t: int, heads: int = HEADS, dtype: torch.dtype = HALF, device=CUDA) -> Tensor:
    """(1, heads, t, WIDTH) as projections give them: in memory (t, heads, WIDTH)."""
    return torch.randn(t, heads, WIDTH, device=device).to(dtype).transpose(0, 1)[None]


def mask(t: int, s: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.zeros(t, s, dtype=dtype, device=CUDA)


CASES = {
    # name: (dtype, t, S, heads of keys, keyword arguments), kernel of sm80, of sm90, without cuDNN
    "with a mask": ((HALF, 8, 8, 4, {"attn_mask": (8, 8)}), "efficient", "cudnn", "efficient"),
    "causal": ((HALF, 8, 8, 4, {"is_causal": True}), "flash", "cudnn", "flash"),
    "causal, grouped": (
        (HALF, 8, 8, 2, {"is_causal": True, "enable_gqa": True}), "flash", "cudnn", "flash",
    ),
    "mask, grouped": (
        (HALF, 8, 8, 2, {"attn_mask": (8, 8), "enable_gqa": True}), "math", "cudnn", "math",
    ),
    "lower right, grouped": (
        (HALF, 3, 8, 2, {"attn_mask": "lower", "enable_gqa": True}), "flash", "flash", "flash",
    ),
    "lower right, square": (
        (HALF, 8, 8, 2, {"attn_mask": "lower", "enable_gqa": True}), "flash", "cudnn", "flash",
    ),
    "upper left, not square": (
        (HALF, 3, 8, 4, {"attn_mask": "upper"}), "efficient", "cudnn", "efficient",
    ),
    "float32": ((SINGLE, 8, 8, 4, {"is_causal": True}), "efficient", "efficient", "efficient"),
    "float32, grouped": (
        (SINGLE, 3, 8, 2, {"attn_mask": "lower", "enable_gqa": True}), "math", "math", "math",
    ),
    "one query": ((HALF, 1, 8, 4, {}), "flash", "cudnn", "flash"),
}  # fmt: skip
CARDS = (("sm80", True), ("sm90", True), ("sm90", False))


def call(dtype: torch.dtype, t: int, s: int, kv_heads: int, kwargs: dict) -> Tensor:
    """The result of one case, with tensors that claim to lie on a card."""
    torch.manual_seed(0)
    query = heads_last(t, HEADS, dtype)
    key, value = heads_last(s, kv_heads, dtype), heads_last(s, kv_heads, dtype)
    wanted = kwargs.get("attn_mask")
    biases = {"lower": causal_lower_right, "upper": causal_upper_left}
    if isinstance(wanted, str):
        kwargs = kwargs | {"attn_mask": biases[wanted](t, s)}
    elif wanted is not None:
        kwargs = kwargs | {"attn_mask": mask(*wanted, dtype)}
    return F.scaled_dot_product_attention(query, key, value, **kwargs)


def test_each_card_takes_its_kernel() -> None:
    wrong = {}
    for name, (arguments, *expected) in CASES.items():
        for (card, cudnn), kernel in zip(CARDS, expected, strict=True):
            with rehearsed(card) as rehearsal:
                torch.backends.cuda.enable_cudnn_sdp(cudnn)
                call(*arguments)
            (taken,) = rehearsal.counts.names(counts.ATTENTION)
            if taken.split()[0] != kernel:
                wrong[name, card, cudnn] = taken
    assert wrong == {}


def test_the_numbers_are_those_of_a_mask_in_memory() -> None:
    """A lower-right bias, whose own path a CPU does not have."""
    with rehearsed("sm80"):
        found = call(*CASES["lower right, grouped"][0])
        sees = torch.ones(3, 8).tril(5).log().to(found)
        expected = call(HALF, 3, 8, 2, {"attn_mask": (3, 8), "enable_gqa": True})
        assert not torch.equal(found.cpu(), expected.cpu())  # that mask hides nothing
        torch.manual_seed(0)
        one = heads_last(3), heads_last(8, KV_HEADS), heads_last(8, KV_HEADS)
        expected = F.scaled_dot_product_attention(*one, attn_mask=sees, enable_gqa=True)
        torch.testing.assert_close(found.cpu(), expected.cpu(), atol=2e-2, rtol=0)


def contiguous(t: int) -> Tensor:
    return torch.randn(1, HEADS, t, WIDTH).to(HALF)


def test_results_lie_as_torch_says_that_cuda_lays_them() -> None:
    """torch's own shape functions of the three fused kernels give their strides."""
    aten = torch.ops.aten
    operations = {
        "flash": lambda q: aten._scaled_dot_product_flash_attention(q, q, q),
        "efficient": lambda q: aten._scaled_dot_product_efficient_attention(q, q, q, None, False),
        "cudnn": lambda q: aten._scaled_dot_product_cudnn_attention(q, q, q, None, False),
    }
    queries = [contiguous(8), heads_last(8, device="cpu"), heads_last(1, device="cpu")]
    queries += [torch.randn(3, 8, HEADS, WIDTH).transpose(1, 2)]
    for query in queries:
        there = torch.empty_strided(query.shape, query.stride(), device="meta", dtype=HALF)
        for name, operation in operations.items():
            strides = attention.layout(query, name), operation(there)[0].stride()
            # Where a tensor has one row, any stride is right.
            lengths = zip(query.shape, *strides, strict=True)
            assert [pair for n, *pair in lengths if n > 1 and pair[0] != pair[1]] == [], name


def test_flash_pads_heads_of_an_odd_width() -> None:
    query = torch.randn(1, 2, 3, 20, dtype=HALF)
    assert attention.layout(query, "flash") == (2 * 3 * 24, 3 * 24, 24, 1)


# The fault that ended every run on an A100 before its first step: queries that share a key head
# as further positions, and `.view` to cut them apart again.
def merged(query: Tensor, key: Tensor, sees: Tensor) -> Tensor:
    t = query.shape[2]
    shared = query.reshape(1, KV_HEADS, -1, WIDTH)
    found = F.scaled_dot_product_attention(shared, key, key, attn_mask=sees)
    return found.view(HEADS, t, WIDTH)


@pytest.mark.parametrize(
    ("card", "cudnn", "refused"),
    [("sm80", True, True), ("sm90", True, False), ("sm90", False, True)],
)
def test_a_view_that_the_layout_forbids_is_refused(card: str, cudnn: bool, refused: bool) -> None:
    with rehearsed(card):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        query, key = heads_last(3), heads_last(8, KV_HEADS)
        sees = mask(3 * HEADS // KV_HEADS, 8)
        if refused:
            with pytest.raises(RuntimeError, match="view size is not compatible"):
                merged(query, key, sees)
        else:
            merged(query, key, sees)


def test_masks_that_are_padded_and_plans_are_counted() -> None:
    with rehearsed("sm80") as rehearsal:
        call(HALF, 4, 8, 4, {"attn_mask": (4, 8)})
        assert rehearsal.counts.total(counts.PADDED) == 0
        call(HALF, 4, 9, 4, {"attn_mask": (4, 9)})
    assert rehearsal.counts.total(counts.PADDED) == 4 * 9 * HALF.itemsize
    before = torch.backends.cuda.cudnn_sdp_enabled()  # models/device.py turns it off
    torch.backends.cuda.enable_cudnn_sdp(True)
    with rehearsed("sm90") as rehearsal:
        for length in (8, 9, 9):
            call(HALF, 4, length, 4, {"attn_mask": (4, length)})
    torch.backends.cuda.enable_cudnn_sdp(before)
    assert rehearsal.counts.total(counts.PLANS) == 2


def test_gradients_flow_through_every_layout() -> None:
    for card, dtype in (("sm80", HALF), ("sm80", SINGLE), ("sm90", HALF)):
        with rehearsed(card):
            query = heads_last(8, dtype=dtype).detach().requires_grad_()
            key = heads_last(8, dtype=dtype)
            F.scaled_dot_product_attention(query, key, key, is_causal=True).sum().backward()
            found = query.grad.cpu()
        plain = query.detach().cpu().as_subclass(Tensor).requires_grad_()
        keys = key.as_subclass(Tensor)
        F.scaled_dot_product_attention(plain, keys, keys, is_causal=True).sum().backward()
        torch.testing.assert_close(found, plain.grad)

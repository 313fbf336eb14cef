"""Parts 1 and 2: what the card can do, attention by kernel, and the drawing of a token."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from models.distribution import draw, law
from tests.benchmarks.floor import bandwidth, product_rate
from tests.gpu.machine import DEVICE, ON_GPU, Row, Size, milliseconds, wait

HEADS, KV_HEADS, WIDTH = 12, 2, 128
HALF = torch.bfloat16


def rates(size: Size) -> Iterator[Row]:
    """Products, memory, and what one launch costs from Python and from a graph."""
    sides = (256,) if size.small else (4096, 8192)
    for kind in (HALF, torch.float32):
        best = max(product_rate((n, n, n), kind, DEVICE) for n in sides)
        yield {"what": "product", "dtype": str(kind), "tflop_s": best / 1e12}
    yield {"what": "memory", "gb_s": bandwidth(DEVICE) / 1e9}
    x, n = torch.zeros(1, device=DEVICE), 1000

    def launches() -> None:
        for _ in range(n):
            x.add_(1)

    yield {"what": "launch", "us": 1e3 * milliseconds(launches, 3) / n}
    if ON_GPU:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launches()
        yield {"what": "launch in a graph", "us": 1e3 * milliseconds(graph.replay, 3) / n}


def attention_of_a_completion(size: Size) -> Iterator[Row]:
    """The last t of S tokens: with a mask, and without one as flash has it."""
    t, length = size.length - 1, size.prompt + size.length - 1
    shape, shared = (1, HEADS, t, WIDTH), (1, KV_HEADS, HEADS // KV_HEADS * t, WIDTH)
    like = {"device": DEVICE, "dtype": HALF, "requires_grad": True}
    q, q_shared = torch.randn(*shape, **like), torch.randn(*shared, **like)
    k, v = (torch.randn(1, KV_HEADS, length, WIDTH, **like) for _ in range(2))
    sees = torch.ones(t, length, device=DEVICE, dtype=torch.bool).tril(length - t)
    mask = torch.zeros(t, length, device=DEVICE, dtype=HALF).masked_fill_(~sees, -torch.inf)
    mask = mask.repeat(HEADS // KV_HEADS, 1)
    masked = partial(F.scaled_dot_product_attention, q_shared, k, v, attn_mask=mask)
    corner = causal_lower_right(t, length)
    bare = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=corner, enable_gqa=True)
    ways: dict[str, Callable[[], Tensor]] = {"mask": masked, "lower right": bare}
    if ON_GPU:
        for kind in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            ways[f"mask, {kind.name}"] = partial(forced, kind, masked)
        ways["lower right, FLASH_ATTENTION"] = partial(forced, SDPBackend.FLASH_ATTENTION, bare)
    for name, way in ways.items():
        yield {"what": f"attention: {name}"} | timed(way, size)


def forced(kind: SDPBackend, way: Callable[[], Tensor]) -> Tensor:
    with sdpa_kernel(kind):
        return way()


def timed(way: Callable[[], Tensor], size: Size) -> Row:
    """The first call (where a plan may be made), forward, forward and backward."""
    try:
        wait()
        start = time.perf_counter()
        found = way()
        wait()
        first = 1e3 * (time.perf_counter() - start)
        both = milliseconds(lambda: way().sum().backward(), size.repeats)
        row = {"first_ms": first, "forward_ms": milliseconds(way, size.repeats), "both_ms": both}
        return row | {"stride": list(found.stride())}
    except RuntimeError as error:
        return {"failed": str(error)[:200]}


def attention_of_a_token(size: Size) -> Iterator[Row]:
    """One token a row over fixed storages with a mask, by kernel."""
    rows = size.prompts * size.group_size
    for count in (rows, max(1, rows // 4)):
        shape = (count, KV_HEADS, HEADS // KV_HEADS, WIDTH)
        q = torch.randn(*shape, device=DEVICE, dtype=HALF)
        k, v = torch.randn(2, count, KV_HEADS, size.slots, WIDTH, device=DEVICE, dtype=HALF)
        mask = torch.zeros(count, 1, 1, size.slots, device=DEVICE, dtype=HALF)
        way = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=mask)
        row = {"what": "attention of a token", "rows": count, "gb": 2 * k.nbytes / 1e9}
        yield row | {"ms": milliseconds(way, size.repeats)}


def drawing(size: Size) -> Iterator[Row]:
    """The project's way to draw a token, and a float64 sum over the whole row."""
    banned = torch.zeros(size.vocabulary, dtype=torch.bool, device=DEVICE)
    for rows in (size.prompts * size.group_size, 8, 1):
        raw = 4 * torch.randn(rows, size.vocabulary, device=DEVICE, dtype=HALF)
        u = torch.rand(rows, device=DEVICE, dtype=torch.float64)
        logits = law(raw, 1.0, banned)
        ways: dict[str, Callable[[], object]] = {
            "law_ms": partial(law, raw, 1.0, banned),
            "draw_ms": partial(draw, logits, u),
            "whole_row_ms": partial(whole_row, logits, u),
        }
        times = {name: milliseconds(way, size.repeats) for name, way in ways.items()}
        same = bool((draw(logits, u)[0] == whole_row(logits, u)).all())
        yield {"what": "drawing", "rows": rows} | times | {"same_tokens": same}


def whole_row(logits: Tensor, u: Tensor) -> Tensor:
    cdf = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    tokens = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)
    return tokens.clamp_(max=logits.shape[-1] - 1)[:, 0]

"""The fewest floating-point operations and bytes that the phases of a GRPO step can do with.

Operations are those of matrix products, 2 for a multiplication with its addition; norms, softmax,
RoPE and activations are not counted. What is assumed, for a step of B groups of G completions:

    once             a prompt once a group, a completion once, an image once through the tower
    pairs            attention over the keys that a query may see, and no other
    last layer       keys and values of all tokens; all else where a prediction is made
    head             once where a prediction is made: G completions have one first prediction
    backward         through frozen weights the inputs' gradients alone, and in the first layer not
                     those of q, k and v; weights' gradients for the adapters alone
    recomputation    of the layers, if checkpointing. Not of the head: a token's gradient can be
                     made beside its log-prob and scaled later. The project does recompute it
    decoding         weights once a token step for all rows, a prompt's keys once for its G rows,
                     own keys once a row
    bytes            weights and adapters once a phase, keys and values, and what forward keeps for
                     backward. Other activations, as if they never left the caches

Adapters are products of their own beside the frozen ones, in the base's dtype, as in the project.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

READ_BY_ALL = ("k", "v")  # of the last layer: what later tokens look at
ELSEWHERE = ("q", "o", "gate", "up", "down")
LINEARS = (*READ_BY_ALL, *ELSEWHERE)


class Cost(NamedTuple):
    flops: int
    bytes: int


@dataclass(frozen=True)
class Sizes:
    """A language model, in elements but for the itemsize."""

    layers: int  # at least 2
    hidden: int
    intermediate: int
    queries: int  # of a token: heads times their width
    keys: int  # of a token: key heads times their width
    vocabulary: int  # rows of the head
    rank: int  # of the adapters; 0 for none
    itemsize: int


@dataclass(frozen=True)
class Tower:
    """A vision tower."""

    layers: int
    hidden: int
    intermediate: int
    patch: int  # numbers in a patch, of its pixels twice
    merged: int  # patches to a token
    out: int
    itemsize: int


class Work(NamedTuple):
    """A step: B prompts of P tokens, each with G completions of L."""

    prompts: int
    prompt: int
    group_size: int
    completion: int


class Shape(NamedTuple):
    """What of a group goes through the model. A predictor's next token is predicted."""

    tokens: int
    pairs: int  # (query, key) that may see each other
    predictors: int
    predicting_pairs: int  # pairs whose query is a predictor


def sizes_of(config: Any, rank: int, itemsize: int) -> Sizes:
    """Of a Qwen2VLConfig."""
    text = config.text_config
    width = text.hidden_size // text.num_attention_heads
    return Sizes(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        queries=text.num_attention_heads * width,
        keys=text.num_key_value_heads * width,
        vocabulary=text.vocab_size,
        rank=rank,
        itemsize=itemsize,
    )


def tower_of(config: Any, itemsize: int) -> Tower:
    """Of a Qwen2VLConfig."""
    vision = config.vision_config
    return Tower(
        layers=vision.depth,
        hidden=vision.embed_dim,
        intermediate=int(vision.embed_dim * vision.mlp_ratio),
        patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        merged=vision.spatial_merge_size**2,
        out=vision.hidden_size,
        itemsize=itemsize,
    )


def tree(work: Work) -> Shape:
    """One group as `[prompt | o_1 | ... | o_G]`; with completions of 1 token, the prompt alone.

    The last token of a completion predicts nothing, so it is no input.

    >>> tree(Work(prompts=1, prompt=2, group_size=2, completion=3))
    Shape(tokens=6, pairs=17, predictors=5, predicting_pairs=16)
    """
    inputs = work.completion - 1
    drawn = work.group_size * inputs
    seen = drawn * work.prompt + work.group_size * inputs * (inputs + 1) // 2
    of_prompt = work.prompt * (work.prompt + 1) // 2
    return Shape(work.prompt + drawn, of_prompt + seen, 1 + drawn, work.prompt + seen)


def frozen(sizes: Sizes, names: tuple[str, ...] = LINEARS) -> int:
    """Frozen weights of these linears of a layer."""
    return sum(a * b for a, b in _linears(sizes, names))


def adapters(sizes: Sizes, names: tuple[str, ...] = LINEARS) -> int:
    """The weights of their adapters."""
    return sum(sizes.rank * (a + b) for a, b in _linears(sizes, names))


def _linears(sizes: Sizes, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """(inputs, outputs)."""
    h, i, q, k = sizes.hidden, sizes.intermediate, sizes.queries, sizes.keys
    every = {"q": (h, q), "k": (h, k), "v": (h, k), "o": (q, h)}
    every |= {"gate": (h, i), "up": (h, i), "down": (i, h)}
    return [every[name] for name in names]


def products(sizes: Sizes, shape: Shape) -> tuple[int, int, int]:
    """Operations of a forward pass: frozen linears and head, adapters, attention."""
    n, m, whole = shape.tokens, shape.predictors, sizes.layers - 1

    def linears(count: Any) -> int:
        last = n * count(sizes, READ_BY_ALL) + m * count(sizes, ELSEWHERE)
        return 2 * (whole * n * count(sizes) + last)

    head = 2 * m * sizes.hidden * sizes.vocabulary
    attention = 4 * sizes.queries * (whole * shape.pairs + shape.predicting_pairs)
    return linears(frozen) + head, linears(adapters), attention


def forward(sizes: Sizes, shape: Shape) -> int:
    """Operations of a forward pass of one group."""
    return sum(products(sizes, shape))


def backward(sizes: Sizes, shape: Shape) -> int:
    """Operations of its backward pass: a frozen linear has one product (of its inputs' gradient),
    an adapter's factor and each of attention's two products have two."""
    frozen_ones, of_adapters, attention = products(sizes, shape)
    first = ("q", "k", "v")
    down_to_inputs = sizes.rank * sizes.hidden * len(first)  # of A
    skipped = 2 * shape.tokens * (frozen(sizes, first) + down_to_inputs)
    return frozen_ones + 2 * of_adapters + 2 * attention - skipped


def recomputed(sizes: Sizes, shape: Shape) -> int:
    """Operations of the layers once more, but for down's output, which no gradient asks for."""
    head = 2 * shape.predictors * sizes.hidden * sizes.vocabulary
    output = sizes.hidden * (sizes.intermediate + sizes.rank)
    rows = (sizes.layers - 1) * shape.tokens + shape.predictors
    return forward(sizes, shape) - head - 2 * rows * output


def weight_bytes(sizes: Sizes) -> int:
    """Of layers, their adapters, and head."""
    layers = sizes.layers * (frozen(sizes) + adapters(sizes))
    return sizes.itemsize * (layers + sizes.vocabulary * sizes.hidden)


def kept_bytes(sizes: Sizes, tokens: int, checkpointing: bool) -> int:
    """What forward keeps for backward; of the last layer nothing is counted."""
    layer = sizes.hidden  # its input
    if not checkpointing:
        attention = 2 * sizes.queries + 2 * sizes.keys  # its output too
        layer += attention + sizes.hidden + 2 * sizes.intermediate  # second norm's input; gate, up
    return sizes.itemsize * (sizes.layers - 1) * tokens * layer


def key_bytes(sizes: Sizes, tokens: int) -> int:
    """Keys and values of tokens, in all layers."""
    return sizes.itemsize * sizes.layers * 2 * sizes.keys * tokens


def vision(tower: Tower, images: int, patches: int) -> Cost:
    """`images` through the tower, of `patches` each, which all see each other."""
    d = tower.hidden
    layer = 4 * d * d + 2 * d * tower.intermediate
    wide = tower.merged * d
    merger = wide * wide + wide * tower.out
    linears = 2 * patches * (tower.patch * d + tower.layers * layer)
    linears += 2 * (patches // tower.merged) * merger
    flops = images * (linears + 4 * tower.layers * patches**2 * d)
    return Cost(flops, tower.itemsize * (tower.patch * d + tower.layers * layer + merger))


def prefill(sizes: Sizes, work: Work) -> Cost:
    """The prompts, each once, up to the logits that first tokens are drawn from."""
    flops = work.prompts * forward(sizes, tree(work._replace(completion=1)))
    return Cost(flops, weight_bytes(sizes) + key_bytes(sizes, work.prompts * work.prompt))


def decode(sizes: Sizes, work: Work) -> Cost:
    """The L - 1 token steps of all rows, from the first tokens' embeddings to the last logits."""
    rows, steps = work.prompts * work.group_size, work.completion - 1
    own = rows * steps * (steps + 1) // 2  # keys of their own that rows see, over all steps
    weights = sizes.layers * (frozen(sizes) + adapters(sizes)) + sizes.vocabulary * sizes.hidden
    attention = 4 * sizes.layers * sizes.queries * (rows * steps * work.prompt + own)
    read = key_bytes(sizes, steps * work.prompts * work.prompt + own)
    return Cost(2 * rows * steps * weights + attention, steps * weight_bytes(sizes) + read)


def update(sizes: Sizes, work: Work, checkpointing: bool) -> tuple[Cost, Cost]:
    """Forward and backward of all groups, in one pass of all of them."""
    shape = tree(work)
    again = recomputed(sizes, shape) if checkpointing else 0
    moved = weight_bytes(sizes) + kept_bytes(sizes, work.prompts * shape.tokens, checkpointing)
    gradients = 4 * sizes.layers * adapters(sizes)
    return (
        Cost(work.prompts * forward(sizes, shape), moved),
        Cost(work.prompts * (backward(sizes, shape) + again), moved + gradients),
    )


def reference(bare: Sizes, work: Work) -> Cost:
    """The log-probs once more, by the model without adapters: `bare`, of rank 0."""
    return Cost(work.prompts * forward(bare, tree(work)), weight_bytes(bare))

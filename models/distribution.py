"""The sampling law: ONE distribution, drawn from by the sampler and scored by the loss.

A token is drawn from softmax(logits / temperature) over the allowed vocabulary, nothing else, and
its log-probability is that of exactly this distribution: same temperature, same banned tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import starmap

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = 128  # entries of the vocabulary that `draw` sums at a time
HEAD_LOGITS = 1 << 26  # most logits of one chunk of the head: 256 MB in float32


def law(logits: Tensor, temperature: float, banned: Tensor) -> Tensor:
    """Logits (n, V) -> float32 logits whose softmax is the distribution sampled and scored."""
    return (logits.float() / temperature).masked_fill(banned, -torch.inf)


def uniforms(keys: Sequence[tuple[int, ...]], group_size: int, length: int) -> Tensor:
    """(B*G, length) float64 in [0, 1): row j of prompt i from Philox keyed by (*keys[i], j).

    A row's numbers depend on its key and nothing else, so neither batch layout nor the order in
    which rows finish nor the number of ranks can change the law of a sample.
    """
    rows = np.empty((len(keys), group_size, length))
    for i, j in np.ndindex(rows.shape[:2]):
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([*keys[i], j])))
        random.random(out=rows[i, j])
    return torch.from_numpy(rows).flatten(0, 1)


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens (n,) of logits (n, V), and their log-probs (n,)."""
    best, tokens = logits.max(dim=-1)
    return tokens, best - logits.logsumexp(dim=-1)


def draw(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the CDF of softmax(logits (n, V)) at u (n,): tokens (n,) and their log-probs (n,).

    A token is -1 where none has a probability, as when logits are not finite. In float64: a float32
    sum over 151,936 entries ends anywhere from 0.9999992 to 1.00001. First the block that u falls
    into is found, then the token in it: a GPU scans a row with few of its cores, and a whole
    vocabulary would take longer than a layer.
    """
    wide = logits.double()
    weights = (wide - wide.amax(dim=-1, keepdim=True)).exp_()  # the softmax but for its divisor
    if short := -weights.shape[1] % BLOCK:
        weights = F.pad(weights, (0, short))
    blocks = weights.unflatten(1, (-1, BLOCK))  # (n, K, BLOCK)
    cdf = blocks.sum(dim=-1).cumsum(dim=-1)  # (n, K) of blocks
    threshold = u[:, None] * cdf[:, -1:]
    # right=True: the first block or entry ABOVE the threshold, so one of probability 0 is never it.
    block = torch.searchsorted(cdf, threshold, right=True).clamp_(max=cdf.shape[1] - 1)  # (n, 1)
    left = threshold - F.pad(cdf, (1, 0)).gather(1, block)  # to go in this block
    inside = blocks.take_along_dim(block[..., None], dim=1)[:, 0].cumsum(dim=-1)  # (n, BLOCK)
    # The two sums may differ in the last bit: `left` must stay below the end of the block.
    below = inside[:, -1:].nextafter(torch.zeros_like(left))
    place = torch.searchsorted(inside, left.minimum(below), right=True).clamp_(max=BLOCK - 1)
    token = block * BLOCK + place
    drawn = weights.gather(1, token)
    token.masked_fill_(~(drawn > 0), -1)
    return token[:, 0], (drawn / cdf[:, -1:]).log()[:, 0].float()


def score(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    banned: Tensor,
) -> tuple[Tensor, Tensor]:
    """Log-probs (N,) of the targets (N,) predicted by hidden (N, hidden), and entropy (N,).

    The head runs in chunks of rows that are recomputed in the backward pass, so (N, V) is never
    held. The entropy, in nats, is of the whole distribution and has no gradient.
    """

    def chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = law(head(hidden), temperature, banned)  # (c, V)
        logprobs = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1)
        with torch.no_grad():  # last, so that the recomputation stops before it
            entropy = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
        return logprobs, entropy

    rows = max(1, HEAD_LOGITS // len(banned))
    pairs = zip(hidden.split(rows), targets.split(rows), strict=True)
    # Nothing in the head is random, so its random state need not be kept and set back.
    kept = {"use_reentrant": False, "preserve_rng_state": False}
    parts = list(starmap(partial(checkpoint, chunk, **kept), pairs))
    logprobs, entropy = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)

"""The sampling law: ONE distribution, drawn from by the sampler and scored by the loss.

A token is drawn from softmax(logits / temperature) over the allowed vocabulary, nothing else, and
its log-probability is that of exactly this distribution: same temperature, same banned tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

HEAD_LOGITS = 1 << 26  # most logits of one chunk of the head: 256 MB in float32


class NoProbability(Exception):
    """A token without probability was drawn, in this row: its logits are not finite."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row}")
        self.row = row


def law(logits: Tensor, temperature: float, banned: Tensor) -> Tensor:
    """Logits (n, V) -> float32 logits whose softmax is the distribution sampled and scored."""
    return (logits.float() / temperature).masked_fill(banned, -torch.inf)


def uniforms(keys: Sequence[tuple[int, ...]], group_size: int, length: int) -> Tensor:
    """(B*G, length) float64 in [0, 1): row j of prompt i from Philox keyed by (*keys[i], j).

    A row's numbers depend on its key and nothing else, so neither batch layout nor the order in
    which rows finish nor the number of ranks can change the law of a sample.
    """
    rows = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, j]))).random(length)
        for key in keys
        for j in range(group_size)
    ]
    return torch.from_numpy(np.stack(rows))


def draw_tokens(logits: Tensor, u: Tensor) -> Tensor:
    """Tokens (n,) by inverting the CDF of softmax(logits (n, V)) at u (n,).

    Raises NoProbability for a token of none, as when logits are not finite.
    """
    tokens, drawn = invert_cdf(logits, u)
    if not bool(drawn.all()):
        raise NoProbability(int((~drawn).nonzero()[0, 0]))
    return tokens


def invert_cdf(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """`draw_tokens` without a look at what it drew: also whether each has a probability (n,).

    In float64: a float32 sum over 151,936 entries ends anywhere from 0.9999992 to 1.00001.
    """
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float64)
    cdf = probabilities.cumsum(dim=-1)
    threshold = u[:, None] * cdf[:, -1:]
    # right=True: the first entry ABOVE the threshold, so an entry of probability 0 is never it.
    tokens = torch.searchsorted(cdf, threshold, right=True).clamp_(max=logits.shape[-1] - 1)
    drawn = probabilities.gather(1, tokens) > 0  # (n, 1)
    return tokens[:, 0], drawn[:, 0]


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
    parts = [checkpoint(chunk, *pair, **kept) for pair in pairs]
    return torch.cat([p for p, _ in parts]), torch.cat([e for _, e in parts])

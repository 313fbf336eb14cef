"""The sampler: prefill a prompt once, then decode all its completions, exactly by the sampling law.

Nothing is read from generation_config: Qwen2-VL's says top_k=1, which makes all completions equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grpo.settings.errors import SettingsError
from models.device import out_of_memory
from models.distribution import NoProbability, draw_tokens, law
from models.layers import Attend, Layers, Linear
from models.sampling.kv_cache import kv_cache
from models.tree import Group, Prompt

PREFILL_TOKENS = 16_384  # prompt tokens that are computed together; bounds their memory


@dataclass(frozen=True)
class Rollout:
    """What was drawn, row i*G + j being completion j of prompt i. On the CPU."""

    tokens: Tensor  # (rows, L) int64; what lies beyond a row's length means nothing
    lengths: Tensor  # (rows,) int64, EOS included
    stopped: Tensor  # (rows,) bool: an EOS was drawn
    logprobs: Tensor | None  # (rows, L) float32 at decode time, if asked for

    def groups(self, prompts: Sequence[Prompt]) -> list[Group]:
        """The same as one group a prompt."""
        # Cloned: a tensor born in inference mode may not enter a graph.
        lengths = self.lengths.tolist()
        rows = [row[:n].clone() for row, n in zip(self.tokens, lengths, strict=True)]
        cut = (~self.stopped).tolist()
        size = len(rows) // len(prompts)
        parts = [slice(i * size, (i + 1) * size) for i in range(len(prompts))]
        return [Group(p, rows[part], cut[part]) for p, part in zip(prompts, parts, strict=True)]


def rollout(
    language_model: nn.Module,
    head: Linear,
    prompts: Sequence[Prompt],
    embeds: Sequence[Tensor],
    *,
    group_size: int,
    u: Tensor | None,
    draw: Callable[..., Rollout] | None = None,
    **rest: Any,
) -> Rollout:
    """Draw `group_size` completions of each prompt, whose embeddings are (P_i, hidden).

    `u` (rows, max_length) are the uniforms; temperature 0 takes the argmax and needs none. `rest`
    is what else `_rollout` wants, or in its place `draw`, see cuda_graph.py. Where memory runs
    out, half of the prompts are drawn at a time, or half of the only prompt's completions: the
    uniforms, and so the law, stay each row's.
    """
    try:
        drawing = draw or _rollout
        return drawing(language_model, head, prompts, embeds, group_size=group_size, u=u, **rest)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if len(prompts) * group_size == 1:
        raise SettingsError(
            f"example {prompts[0].id}: out of memory with one completion at a time; use a smaller "
            "--max-completion-length or a smaller --max-pixels"
        )
    half = len(prompts) // 2
    parts = [(slice(half), group_size), (slice(half, None), group_size)]
    if not half:
        parts = [(slice(1), group_size // 2), (slice(1), group_size - group_size // 2)]
    drawn, row = [], 0
    for of, size in parts:
        rows = slice(row, row := row + len(prompts[of]) * size)
        us = None if u is None else u[rows]
        how = {"group_size": size, "u": us, "draw": draw, **rest}
        drawn.append(rollout(language_model, head, prompts[of], embeds[of], **how))
    tokens, lengths, stopped = (
        torch.cat([getattr(part, name) for part in drawn])
        for name in ("tokens", "lengths", "stopped")
    )
    kept = [part.logprobs for part in drawn if part.logprobs is not None]
    return Rollout(tokens, lengths, stopped, torch.cat(kept) if kept else None)


@torch.inference_mode()
def _rollout(
    language_model: nn.Module,
    head: Linear,
    prompts: Sequence[Prompt],
    embeds: Sequence[Tensor],
    *,
    group_size: int,
    u: Tensor | None,
    temperature: float,
    max_length: int,
    banned: Tensor,
    eos: frozenset[int],
    keep_logprobs: bool = False,
) -> Rollout:
    device = banned.device
    layers, lengths = Layers(language_model), torch.tensor([len(of) for of in embeds])
    rows = len(prompts) * group_size
    config = language_model.config
    shape = (config.num_hidden_layers, config.num_key_value_heads, layers.width)
    like = {"dtype": embeds[0].dtype, "device": device}
    cache = kv_cache(shape, lengths, rows, max_length, **like)
    hidden = prefill(layers, cache.filling, prompts, embeds).repeat_interleave(group_size, dim=0)

    position = torch.tensor([p.next_position for p in prompts]).repeat_interleave(group_size)
    # Text has the same position on all three axes, so a table by position says it all.
    table = torch.arange(int(position.max()) + max_length, device=device).expand(3, -1)
    cos, sin = layers.rope(table, hidden)  # (positions, head_dim)
    position = position.to(device)
    row = torch.arange(rows)  # which completion a live row decodes
    tokens = torch.zeros(rows, max_length, dtype=torch.int64)
    logprobs = torch.zeros(rows, max_length) if keep_logprobs else None
    done_at = torch.full((rows,), max_length)
    stopped = torch.zeros(rows, dtype=torch.bool)
    eos_ids = torch.tensor(sorted(eos))
    u = None if u is None else u.to(device)

    for step in range(max_length):
        logits = law(head(hidden), temperature or 1.0, banned)  # (live, V)
        if temperature == 0:
            chosen = logits.argmax(dim=-1)
        else:
            chosen = _drawn(logits, u[row.to(device), step], prompts, row // group_size)
        if logprobs is not None:
            picked = logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
            logprobs[row, step] = picked.cpu()
        new = chosen.cpu()
        tokens[row, step] = new
        done = torch.isin(new, eos_ids)
        if bool(done.any()):
            stopped[row[done]] = True
            done_at[row[done]] = step + 1
            holes, sources, live = cache.drop(done)
            row[holes], chosen[holes], position[holes] = (
                row[sources],
                chosen[sources],
                position[sources],
            )
            row, chosen, position = row[:live], chosen[:live], position[:live]
        if not len(row) or step + 1 == max_length:
            break
        at = position + step
        hidden = layers(
            F.embedding(chosen, language_model.embed_tokens.weight),
            (cos[at], sin[at]),
            cache.attend,
        )
        cache.slot += 1
    return Rollout(tokens, done_at, stopped, logprobs)


def _drawn(logits: Tensor, u: Tensor, prompts: Sequence[Prompt], of: Tensor) -> Tensor:
    """`draw_tokens`, with a name to its error: row i is of the prompt at place `of` (rows,)."""
    try:
        return draw_tokens(logits, u)
    except NoProbability as error:
        raise not_finite(prompts[of[error.row]]) from None


def not_finite(prompt: Prompt) -> SettingsError:
    return SettingsError(
        f"example {prompt.id}: the model's logits are not finite; use another "
        "--out with --dtype float32 or another --model, or take the row out of the data"
    )


def prefill(
    layers: Layers,
    filling: Callable[[int, list[int]], Attend],
    prompts: Sequence[Prompt],
    embeds: Sequence[Tensor],
) -> Tensor:
    """Run each prompt once, into the cache; last hidden states (B, hidden)."""
    last = []
    for part in plan_prefill([len(embed) for embed in embeds]):
        lengths = [len(embed) for embed in embeds[part]]
        x = torch.cat(list(embeds[part]))  # (T, hidden)
        positions = torch.cat([prompt.position_ids for prompt in prompts[part]], dim=1)
        ends = torch.tensor(lengths, device=x.device).cumsum(0) - 1
        rope = layers.rope(positions.to(x.device), x)
        last.append(layers(x, rope, filling(part.start, lengths), ends))
    return torch.cat(last)


def plan_prefill(lengths: Sequence[int]) -> list[slice]:
    """Prompts that are prefilled together, in order, up to PREFILL_TOKENS or one alone."""
    parts, start = [], 0
    while start < len(lengths):
        ends = itertools.accumulate(lengths[start:])
        count = sum(end <= PREFILL_TOKENS for end in ends) or 1
        parts.append(slice(start, start := start + count))
    return parts

"""The sampler: prefill a prompt once, then decode all its completions, exactly by the sampling law.

Nothing is read from generation_config: Qwen2-VL's says top_k=1, which makes all completions equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from grpo.config import SettingsError
from models.decode import Decoder, KVCache
from models.law import NoProbability, draw_tokens, law
from models.recompute import out_of_memory
from models.tree import Group, Prompt

PREFILL_TOKENS = 16_384  # padded prompt tokens of one prefill batch; bounds its memory


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


def run(
    language_model: nn.Module, embeds: Tensor, positions: Tensor, mask: Tensor | None, cache=None
) -> Tensor:
    """Hidden states (n, T, hidden) of embeds (n, T, hidden) at positions (3, n, T).

    The mask is ready-made: transformers builds none, and with explicit positions it keeps none on
    the module. None is plain causal attention.
    """
    output = language_model(
        inputs_embeds=embeds,
        position_ids=positions,
        attention_mask={"full_attention": mask},
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return output.last_hidden_state


def rollout(
    language_model: nn.Module,
    head: nn.Module,
    prompts: Sequence[Prompt],
    embeds: Sequence[Tensor],
    *,
    group_size: int,
    u: Tensor | None,
    **rest: Any,
) -> Rollout:
    """Draw `group_size` completions of each prompt, whose embeddings are (P_i, hidden).

    `u` (rows, max_length) are the uniforms; temperature 0 takes the argmax and needs none. `rest`
    is what else `_rollout` wants. Where memory runs out, half of the prompts are drawn at a
    time, or half of the only prompt's completions: the uniforms, and so the law, stay each row's.
    """
    try:
        return _rollout(language_model, head, prompts, embeds, group_size=group_size, u=u, **rest)
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
        drawn.append(
            rollout(language_model, head, prompts[of], embeds[of], group_size=size, u=us, **rest)
        )
    tokens, lengths, stopped = (
        torch.cat([getattr(part, name) for part in drawn])
        for name in ("tokens", "lengths", "stopped")
    )
    kept = [part.logprobs for part in drawn if part.logprobs is not None]
    return Rollout(tokens, lengths, stopped, torch.cat(kept) if kept else None)


@torch.inference_mode()
def _rollout(
    language_model: nn.Module,
    head: nn.Module,
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
    device, dtype = banned.device, embeds[0].dtype
    lengths = torch.tensor([len(prompt.input_ids) for prompt in prompts])
    start, rows = int(lengths.max()), len(prompts) * group_size
    config = language_model.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    shape = (config.num_hidden_layers, 2, rows, heads, start + max_length, width)
    cache = KVCache(shape, group_size, start, dtype=dtype, device=device)

    hidden = _prefill(language_model, cache, prompts, embeds).repeat_interleave(group_size, dim=0)
    row_lengths = lengths.repeat_interleave(group_size)[:, None]
    slots = torch.arange(shape[4])
    unseen = (slots >= row_lengths) & (slots < start)  # (rows, slots): the pads between
    mask = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, -torch.inf).to(device)
    position = torch.tensor([p.next_position for p in prompts]).repeat_interleave(group_size)
    position = position.to(device)
    decoder = Decoder(language_model, int(position.max()) + max_length)
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
            # Live rows from the end take the places of finished ones: few rows are copied.
            live = int((~done).sum())
            holes, sources = done[:live].nonzero()[:, 0], (~done[live:]).nonzero()[:, 0] + live
            cache.live = live
            if len(holes):
                row[holes], chosen[holes] = row[sources], chosen[sources]
                position[holes], mask[holes] = position[sources], mask[sources]
                cache.move(sources.to(device), holes.to(device))
            row, chosen, position, mask = row[:live], chosen[:live], position[:live], mask[:live]
        if not len(row) or step + 1 == max_length:
            break
        hidden = decoder.step(chosen, position + step, cache, mask)
    return Rollout(tokens, done_at, stopped, logprobs)


def _drawn(logits: Tensor, u: Tensor, prompts: Sequence[Prompt], of: Tensor) -> Tensor:
    """`draw_tokens`, with a name to its error: row i is of the prompt at place `of` (rows,)."""
    try:
        return draw_tokens(logits, u)
    except NoProbability as error:
        raise SettingsError(
            f"example {prompts[of[error.row]].id}: the model's logits are not finite; use another "
            "--out with --dtype float32 or another --model, or take the row out of the data"
        ) from None


def _prefill(
    language_model: nn.Module, cache: KVCache, prompts: Sequence[Prompt], embeds: Sequence[Tensor]
) -> Tensor:
    """Run each prompt once, keep its keys and values for its G rows; last hidden states (B, h).

    Pads lie at the end, where causal attention never looks back from: no mask is needed.
    """
    batch = max(1, PREFILL_TOKENS // max(len(embed) for embed in embeds))
    last = []
    for first in range(0, len(prompts), batch):
        part = slice(first, min(first + batch, len(prompts)))
        cache.rows = slice(part.start * cache.group_size, part.stop * cache.group_size)
        positions = pad_sequence([p.position_ids.T for p in prompts[part]], batch_first=True)
        padded = pad_sequence(list(embeds[part]), batch_first=True)  # (b, P, hidden)
        hidden = run(
            language_model, padded, positions.permute(2, 0, 1).to(padded.device), None, cache
        )
        ends = torch.tensor([len(embed) - 1 for embed in embeds[part]], device=hidden.device)
        last.append(hidden[torch.arange(len(ends), device=hidden.device), ends])
    cache.rows = slice(0, 0)
    return torch.cat(last)

"""The sampler of a CPU: a Python loop with one forward pass a token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.distribution import NoProbability, draw_tokens, law
from models.layers import Layers
from models.sampling.kv_cache import KVCache
from models.sampling.sampler import Record, Rollout, Task, not_finite, prefill


@torch.inference_mode()
def sample_eagerly(task: Task) -> Rollout:
    """Draw all completions of a task; see Sampler. One forward pass computes all live rows."""
    prompts, group_size = task.prompts, task.group_size
    layers, device = Layers(task.language_model), task.banned.device
    cache = _new_cache(task, layers)
    # The first token of all G completions is drawn from the prompt's one last hidden state.
    last = prefill(layers, cache.prefill_attention, prompts, task.embeds)  # (B, hidden)
    hidden = last.repeat_interleave(group_size, dim=0)  # (rows, hidden)
    position = torch.tensor([p.next_position for p in prompts]).repeat_interleave(group_size)
    # A text token has the same position on all three M-RoPE axes, so a table by position is enough.
    table = torch.arange(int(position.max()) + task.max_length, device=device).expand(3, -1)
    cos, sin = layers.rope(table, hidden)  # (positions, head_dim)
    position = position.to(device)
    uniforms = None if task.uniforms is None else task.uniforms.to(device)
    record = Record(task)

    for step in range(task.max_length):
        logits = law(task.head(hidden), task.temperature or 1.0, task.banned)  # (live, V)
        tokens = _choose(task, logits, uniforms, record.row, step)  # (live,)
        logprobs = None
        if task.keep_logprobs:
            logprobs = logits.log_softmax(dim=-1).gather(1, tokens[:, None]).cpu()  # (live, 1)
        done = record.add(step, tokens[:, None].cpu(), logprobs)
        if bool(done.any()):
            # A finished row costs nothing more: the last live rows move to the places of finished
            # ones, in the cache and in everything that is indexed by place.
            moves = cache.drop(done)
            record.row = moves.apply(record.row)
            tokens = moves.apply(tokens)
            position = moves.apply(position)
        if not len(record.row) or step + 1 == task.max_length:
            break
        at = position + step
        embeds = F.embedding(tokens, task.language_model.embed_tokens.weight)
        hidden = layers(embeds, (cos[at], sin[at]), cache.attend)
        cache.slot += 1
    return record.rollout()


def _new_cache(task: Task, layers: Layers) -> KVCache:
    """An empty KV cache for all rows of the task."""
    config = task.language_model.config
    shape = (config.num_hidden_layers, config.num_key_value_heads, layers.width)
    lengths = torch.tensor([len(embed) for embed in task.embeds])
    like = {"dtype": task.embeds[0].dtype, "device": task.banned.device}
    return KVCache(shape, lengths, task.rows, task.max_length, **like)


def _choose(task: Task, logits: Tensor, uniforms: Tensor | None, row: Tensor, step: int) -> Tensor:
    """One token (live,) for each place, from logits (live, V); place i decodes row[i]."""
    if task.temperature == 0:
        return logits.argmax(dim=-1)
    try:
        return draw_tokens(logits, uniforms[row.to(logits.device), step])
    except NoProbability as error:
        raise not_finite(task.prompts[row[error.row] // task.group_size]) from None

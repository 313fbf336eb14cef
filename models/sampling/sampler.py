"""Sampling: what a sampler takes and returns, the retry if memory runs out, and the plain loop.

A sampler draws G completions of each prompt, one token at a time for all of them at once:

    o_t ~ softmax(logits(q, o_<t) / temperature)   over the allowed tokens (models/distribution.py)

`sample_eagerly` is the plain loop; models/sampling/cuda_graph.py is the same on a GPU.
Nothing is read from generation_config: Qwen2-VL's has top_k=1, which makes all completions equal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import unpad_sequence

from grpo.settings.errors import SettingsError
from models.device import out_of_memory
from models.distribution import draw, greedy, law
from models.layers import Layers
from models.linear import Head
from models.sampling.kv_cache import KVCache, prefill, storing_attention
from models.tree import Group, Prompt


@dataclass(frozen=True)
class Task:
    """The completions to draw, and the model to draw them from. A row is one completion."""

    language_model: nn.Module
    head: Head
    banned: Tensor  # (V,) bool: tokens that are never drawn
    eos: frozenset[int]
    prompts: Sequence[Prompt]
    embeds: Sequence[Tensor]  # one (P_i, hidden) a prompt
    group_size: int
    uniforms: Tensor  # (rows, max_length) float64; temperature 0 takes the argmax, and no number
    temperature: float
    max_length: int
    first: int = 0  # token to begin with; the plan of memory draws the last ones only


class Rollout:
    """The completions of a task as they are drawn, on the host. Row i*G + j is completion j of
    prompt i."""

    def __init__(self, task: Task) -> None:
        rows, length = task.uniforms.shape
        self.task = task
        # Finished rows are no longer computed, so place i of a step is not row i of the rollout.
        self.row = torch.arange(rows)  # (live,) the row that each place decodes
        # What lies beyond a row's length means nothing.
        self.tokens = torch.zeros(rows, length, dtype=torch.int64)
        self.logprobs = torch.zeros(rows, length)  # when they were drawn
        self.lengths = torch.full((rows,), length)  # EOS included
        self.stopped = torch.zeros(rows, dtype=torch.bool)  # an EOS was drawn
        self._ends = torch.tensor(sorted(task.eos))

    def add(self, start: int, drawn: Tensor) -> Tensor:
        """Write tokens and log-probs, `drawn` (2, live, n) float64, at the positions from `start`
        on. Return which rows ended (live,).

        A row ends with its first EOS; tokens behind it are written and mean nothing. Raises
        SettingsError for the first token before it that had no probability (-1).
        """
        tokens, window = drawn[0].long(), slice(start, start + drawn.shape[2])
        self.tokens[self.row, window] = tokens
        self.logprobs[self.row, window] = drawn[1].float()
        is_end = torch.isin(tokens, self._ends)
        done, first = is_end.any(dim=1), is_end.int().argmax(dim=1)
        ended = self.row[done]
        self.lengths[ended] = start + first[done] + 1
        self.stopped[ended] = True
        position = torch.arange(window.start, window.stop)
        wrong = (tokens < 0) & (position < self.lengths[self.row][:, None])
        if bool(wrong.any()):
            place = int(wrong.T.nonzero()[0, 1])
            prompt = self.task.prompts[self.row[place] // self.task.group_size]
            raise SettingsError(
                f"example {prompt.id}: the model's logits are not finite; use another "
                "--out with --dtype float32 or another --model, or take the row out of the data"
            )
        return done

    def groups(self, prompts: Sequence[Prompt]) -> list[Group]:
        """The same as one group a prompt."""
        tokens = unpad_sequence(self.tokens, self.lengths, batch_first=True)
        logprobs = unpad_sequence(self.logprobs, self.lengths, batch_first=True)
        truncated = (~self.stopped).tolist()
        groups, size = [], len(tokens) // len(prompts)
        for i, prompt in enumerate(prompts):
            rows = slice(i * size, (i + 1) * size)
            groups.append(Group(prompt, tokens[rows], truncated[rows], logprobs[rows]))
        return groups


# Draws all completions of a task: `sample_eagerly`, or a GraphSampler on a GPU. Raises
# SettingsError if logits are not finite, and the device's own error if memory runs out.
Sampler = Callable[[Task], Rollout]


def sample_in_parts(sampler: Sampler, task: Task) -> Rollout:
    """Draw a task whole, or in halves wherever memory runs out.

    A row keeps its own uniforms, so its law does not depend on the parts. Raises SettingsError if
    a single completion does not fit.
    """
    try:
        return sampler(task)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # Outside of the block: until it ends, the traceback keeps the sampler's tensors alive.
    return joined(task, [sample_in_parts(sampler, half) for half in _halves(task)])


def _halves(task: Task) -> list[Task]:
    """Two tasks with half of the prompts each, or with half of the only prompt's completions."""
    if len(task.uniforms) == 1:
        problem = f"example {task.prompts[0].id}: out of memory with one completion at a time"
        remedy = "use a smaller --max-completion-length or a smaller --max-pixels"
        raise SettingsError(f"{problem}; {remedy}")
    prompts, size = len(task.prompts) // 2, task.group_size // 2
    if prompts:
        places = slice(prompts), slice(prompts, None)
        halves = [replace(task, prompts=task.prompts[p], embeds=task.embeds[p]) for p in places]
    else:
        halves = [replace(task, group_size=n) for n in (size, task.group_size - size)]
    uniforms = task.uniforms.split([len(half.prompts) * half.group_size for half in halves])
    return [replace(half, uniforms=u) for half, u in zip(halves, uniforms, strict=True)]


def joined(task: Task, parts: Sequence[Rollout]) -> Rollout:
    """One rollout with the rows of all parts, in order."""
    whole = Rollout(task)
    for name in ("tokens", "logprobs", "lengths", "stopped"):
        setattr(whole, name, torch.cat([getattr(part, name) for part in parts]))
    return whole


@torch.inference_mode()
def sample_eagerly(task: Task) -> Rollout:
    """Draw all completions of a task; see Sampler. One forward pass computes all live rows."""
    layers, device = Layers(task.language_model), task.banned.device
    cache = KVCache(layers, task.embeds, task.group_size, task.max_length)
    attention = partial(storing_attention, cache.prompts, 1)
    cache.slot = task.first
    # The first token of all G completions is drawn from the prompt's one last hidden state.
    last, position = prefill(layers, attention, task.prompts, task.embeds)  # (B, hidden), (B,)
    hidden = last.repeat_interleave(task.group_size, dim=0)  # (rows, hidden)
    # A text token has the same position on all three M-RoPE axes, so a table by position is enough.
    table = torch.arange(int(position.max()) + task.max_length, device=device).expand(3, -1)
    cos, sin = layers.rope(table, hidden)  # (positions, head_dim)
    position = position.repeat_interleave(task.group_size).to(device)  # (rows,)
    uniforms = task.uniforms.to(device)
    rollout = Rollout(task)

    for step in range(task.first, task.max_length):
        logits = law(task.head(hidden), task.temperature or 1.0, task.banned)  # (live, V)
        if task.temperature == 0:
            tokens, logprobs = greedy(logits)  # (live,) each
        else:
            tokens, logprobs = draw(logits, uniforms[rollout.row.to(device), step])
        # In one tensor, which a GPU's host waits for once; float64 holds every token exactly.
        done = rollout.add(step, torch.stack([tokens.double(), logprobs])[..., None].cpu())
        if bool(done.any()):
            # A finished row costs nothing more: the last live rows move to the places of finished
            # ones, in the cache and in everything that is indexed by place.
            moves = cache.drop(done)
            rollout.row = moves.apply(rollout.row)
            tokens = moves.apply(tokens)
            position = moves.apply(position)
        if not len(rollout.row) or step + 1 == task.max_length:
            break
        at = position + step
        embeds = F.embedding(tokens, task.language_model.embed_tokens.weight)
        hidden = layers(embeds, (cos[at], sin[at]), cache.attend)
        cache.slot += 1
    return rollout

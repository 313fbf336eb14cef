"""What a run will hold in memory, by arithmetic on the shapes of its model: before it runs.

What stays through a run, plus the larger of its two halves:

    standing   parameters, adapters with gradients and moments; on a CPU features and the process
    sampling   KV cache of B x G rows, and a batch of prompts or the logits of every row
    update     activations of the largest pass, and the head's chunk or one layer at work

The reference pass keeps nothing and the tower sees one image at a time: both are below the update.
models/probe.py measures the same, and the tests count every byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from models import attention
from models import distribution as law
from models.images import features as vision
from models.sampling import kv_cache

MB = 2**20
LORA_LINEARS = 7  # of a layer


@dataclass(frozen=True)
class Sizes:
    """A model as far as memory goes. Bytes, but for the counts of the first two lines."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_width: int  # of the keys of a token in one layer
    vocabulary: int  # rows of the head
    rank: int
    itemsize: int  # of the base's dtype
    language_model: int  # with its embedding
    head: int  # 0 where it is the embedding
    tower: int
    adapters: int  # trainable, float32
    reference: int  # a frozen copy of them, where the run starts from an adapter
    token_budget: int  # of a pass, see Policy.passes
    token_budget_checkpointed: int
    checkpointing: bool
    on_cpu: bool  # where features are kept and the process counts
    process: int = 0  # interpreter, libraries and tokenizer; on a CPU
    loading: int = 0  # the peak while the weights were read; on a CPU

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Work:
    """The largest step: B prompts (a share of them), each the longest, with G full completions."""

    prompt: int  # tokens, those of images included
    image_tokens: int
    completion: int
    group_size: int
    prompts_per_step: int
    samples: bool = True  # no: supervised
    images: int = 0  # whose features will be kept


class Plan(NamedTuple):
    """Bytes by name. Of a phase's last two parts only one is there at a time."""

    standing: dict[str, int]
    sampling: dict[str, int]
    update: dict[str, int]
    loading: int = 0  # weights as stored, mapped, beside those in another dtype; over by the steps

    @property
    def step(self) -> int:
        return sum(self.standing.values()) + max(held(self.sampling), held(self.update))

    @property
    def peak(self) -> int:
        return max(self.loading, self.step)


def held(phase: dict[str, int]) -> int:
    """The peak of a phase: what it holds all along, and the larger of its last two parts."""
    *all_along, first, second = phase.values()
    return sum(all_along) + max(first, second)


def sizes_of(policy: Any, process: int = 0, loading: int = 0) -> Sizes:
    """The sizes of a Policy (models/policy.py)."""
    base, text = policy.model.get_base_model(), policy.language_model.config
    adapters = sum(parameter.nbytes for parameter in policy.parameters())
    known = {id(parameter) for parameter in policy.language_model.parameters()}
    return Sizes(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_width=text.num_key_value_heads * text.hidden_size // text.num_attention_heads,
        vocabulary=len(policy.banned),
        rank=policy.model.peft_config["default"].r,
        itemsize=policy.dtype.itemsize,
        language_model=_frozen_bytes(policy.language_model),
        head=0 if id(policy.head.weight) in known else policy.head.weight.nbytes,
        tower=_frozen_bytes(base.model.visual),
        adapters=adapters,
        reference=adapters if "reference" in policy.model.peft_config else 0,
        token_budget=policy.token_budget,
        token_budget_checkpointed=policy.pass_tokens(checkpointing=True),
        checkpointing=policy.checkpointing,
        on_cpu=policy.device.type == "cpu",
        process=process,
        loading=loading,
    )


def _frozen_bytes(module: nn.Module) -> int:
    named = module.named_parameters()
    return sum(parameter.nbytes for name, parameter in named if "lora_" not in name)


def plan(sizes: Sizes, work: Work) -> Plan:
    """The memory of the largest step, part by part."""
    features = work.images * work.image_tokens * sizes.hidden * sizes.itemsize
    standing = {
        "language model": sizes.language_model,
        "head": sizes.head,
        "vision tower": sizes.tower,
        "adapters": sizes.adapters + sizes.reference,
        "gradients": sizes.adapters,
        "optimizer moments": 2 * sizes.adapters,
        "image features": min(features, vision.MEMORY_LIMIT) if sizes.on_cpu else 0,
        "process": sizes.process,
    }
    update = update_bytes(sizes, largest_pass(sizes, work))
    return Plan(standing, sampling_bytes(sizes, work), update, sizes.loading)


def sampling_bytes(sizes: Sizes, work: Work) -> dict[str, int]:
    """KV cache, and either a batch of prompts on their way in or the logits of all rows."""
    if not work.samples:
        return {"KV cache": 0, "prompts": 0, "logits": 0}
    rows = work.prompts_per_step * work.group_size
    a_slot = 2 * sizes.kv_width * sizes.itemsize  # of one token's keys and values, in a layer
    slots = work.prompts_per_step * work.prompt + rows * work.completion
    batch = min(work.prompts_per_step, max(1, kv_cache.PREFILL_TOKENS // work.prompt))
    # The MLP; embeddings, streams, queries, keys and values; cosines and sines.
    width = 3 * sizes.intermediate + 6 * sizes.hidden + 2 * sizes.kv_width + 2 * sizes.head_width
    return {
        "KV cache": sizes.layers * slots * a_slot,
        "prompts": batch * work.prompt * width * sizes.itemsize + lowered(sizes),
        # Float32, and twice float64 for the cumulative sum.
        "logits": 20 * rows * sizes.vocabulary + lowered(sizes),
    }


class Pass(NamedTuple):
    """Groups that go through the model together, all alike."""

    groups: int
    prompt: int  # tokens
    completions: int  # of a group
    inputs: int  # tokens of a completion, without its last

    @property
    def drawn(self) -> int:
        return self.groups * self.completions * self.inputs

    @property
    def tokens(self) -> int:
        return self.groups * self.prompt + self.drawn

    @property
    def wanted(self) -> int:
        """Tokens that predict: those of completions, and a prompt's last."""
        return self.groups + self.drawn


def passes(sizes: Sizes, work: Work) -> Iterator[Pass]:
    """The passes that a step can have, see models/tree.py: plan_passes.

    Groups are of all lengths up to that of the longest prompt with G full completions: several
    shorter ones, which fill the budget, may be more than the longest, which goes alone.
    """
    whole = Pass(1, work.prompt, work.group_size, work.completion - 1)
    yield whole
    for groups in range(2, work.prompts_per_step + 1):
        inputs = (sizes.token_budget // groups - work.prompt) // work.group_size
        if inputs <= 0:
            break
        yield whole._replace(groups=groups, inputs=min(inputs, whole.inputs))


def largest_pass(sizes: Sizes, work: Work) -> Pass:
    return max(passes(sizes, work), key=lambda one: held(update_bytes(sizes, one)))


def update_bytes(sizes: Sizes, one: Pass) -> dict[str, int]:
    """What a pass holds, forward and backward."""
    predicted = one.groups * one.completions * (one.inputs + 1)
    return {
        "activations": activations(sizes, one, sizes.checkpointing),
        # Backward holds four at once: the logits again, their gradient, and a softmax in two steps.
        "head's chunk": 4
        * 4
        * min(predicted, max(1, law.HEAD_LOGITS // sizes.vocabulary))
        * sizes.vocabulary,
        "layer at work": layer_at_work(sizes, one),
    }


def activations(sizes: Sizes, one: Pass, checkpointing: bool) -> int:
    """Bytes that a pass keeps, but for the head's chunk, which is always recomputed. Checkpointed
    they are the layers' inputs, and what is after the layers."""
    state = sizes.hidden * sizes.itemsize
    if checkpointing:
        rope = 2 * one.tokens * sizes.head_width * sizes.itemsize
        layers = sizes.layers * one.tokens * state + rope + lowered(sizes)
    else:
        of_last = saved_by_layer(sizes, one, one.wanted)
        layers = (sizes.layers - 1) * saved_by_layer(sizes, one, one.tokens) + of_last
        layers += lowered(sizes) - one.tokens * state  # nothing trains below the first norm
    predicted = one.groups * one.completions * (one.inputs + 1)
    return layers + (one.wanted + predicted) * state + masks(sizes, one)


def masks(sizes: Sizes, one: Pass) -> int:
    whole, seen = one.tokens // one.groups, one.prompt + one.inputs  # of a group, of a completion
    dense = (whole + one.wanted // one.groups) * whole  # and once more for the last layer
    each = dense if whole <= attention.DENSE else one.inputs * seen
    return one.groups * sizes.hidden // sizes.kv_width * each * sizes.itemsize


def saved_by_layer(sizes: Sizes, one: Pass, wanted: int) -> int:
    """Bytes that models/layers.py keeps of one layer with `wanted` tokens after its attention.

    Base weights are frozen: of what goes into a linear, only LoRA's A needs it.
    """
    h, item = sizes.hidden, sizes.itemsize
    dense = one.tokens // one.groups <= attention.DENSE
    copies = 0 if dense else one.groups * one.completions * (one.prompt + one.inputs)  # of keys
    looked_at = one.tokens * (2 * h + 2 * sizes.rank) + (one.tokens + copies) * 2 * sizes.kv_width
    queries = wanted * 3 * h + (not dense) * one.drawn * h  # rotated; what attention gave, twice
    queries += wanted * h if wanted < one.tokens else 0
    after = wanted * (2 * h + 3 * sizes.intermediate + (LORA_LINEARS - 2) * sizes.rank)
    # In float32 always: a norm's root mean square, and attention's log-sum-exp.
    float32 = 4 * (one.tokens + wanted + wanted * sizes.heads)
    return item * (looked_at + queries + after) + float32


def layer_at_work(sizes: Sizes, one: Pass) -> int:
    """Bytes that come and go while a layer runs; checkpointed, what it keeps and lets go."""
    again = saved_by_layer(sizes, one, one.tokens) if sizes.checkpointing else 0
    widest = one.tokens * sizes.intermediate * sizes.itemsize
    return again + (2 if sizes.checkpointing else 4) * widest


def lowered(sizes: Sizes) -> int:
    """Copies of the adapters in the base's dtype, as the passes compute in it."""
    return 0 if sizes.itemsize == 4 else sizes.adapters * sizes.itemsize // 4

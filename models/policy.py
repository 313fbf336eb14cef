"""Policy: everything the algorithm needs of a model: encode, sample, score, refer to the base.

policy = load_policy("phantom")
prompts = policy.encode(examples)
groups = policy.sample(prompts, 8, keys, temperature=1.0, max_completion_length=64)
for part in policy.passes(groups):
    logprobs, entropy = policy.logprobs([groups[i] for i in part], temperature=1.0)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from grpo.settings.errors import UsageError
from models import device as exhausted
from models import lora
from models.attention import TreeAttention
from models.chat import Chat, Example
from models.distribution import score, uniforms
from models.images.features import VisionCache
from models.layers import Layers, read_linear
from models.loading import load as loading
from models.sampling import sampler as sampling
from models.sampling.cuda_graph import Captured
from models.tree import Group, Prompt, pack, place_images, plan_passes, rope_positions

# Most tokens of one forward pass with gradients; a larger group goes alone. Without checkpointing a
# 2B model keeps about 3 MB of activations a token. A CPU gains nothing from more tokens than its
# last cache holds the widest activation of, and glibc hands out every block above 32 MB anew.
PASS_TOKENS, PASS_TOKENS_CHECKPOINTED, CPU_ACTIVATION = 4_096, 16_384, 12 << 20
LARGE = 1_000_000_000  # parameters from which "auto" checkpoints on a GPU


class Policy:
    """A frozen Qwen2-VL with a trainable LoRA. Always in eval mode: no dropout anywhere."""

    def __init__(self, model, tokenizer, processor, *, checkpointing: bool, cache: Path | None):
        """`model` is a PeftModel with the adapter "default" (models/lora.py)."""
        self.model = model.eval()
        self.chat = Chat(tokenizer)
        base = model.get_base_model()
        self.language_model, self.head = base.model.language_model, read_linear(base.lm_head)
        self.vision = VisionCache(base.model, processor, cache)
        self.merge = base.config.vision_config.spatial_merge_size
        self.max_length = base.config.text_config.max_position_embeddings
        self.device, self.dtype = self.head.weight.device, self.head.weight.dtype
        self._adapter = lora.weights(model)
        self.names = list(self._adapter)  # on disk, of `parameters()`
        # One tensor for sampler and scorer: what cannot be drawn has no mass in the normaliser.
        self.banned = self.chat.banned(self.head.weight.shape[0]).to(self.device)
        # On a GPU Python would be what decoding waits for; None is sampling's own loop.
        self.draw = Captured() if self.device.type == "cuda" else None
        self.token_budget, self.checkpointing = self.pass_tokens(checkpointing), checkpointing

    def pass_tokens(self, checkpointing: bool) -> int:
        """Most tokens of a pass, unless one group has more."""
        if self.device.type == "cpu":
            width = self.language_model.config.intermediate_size * self.dtype.itemsize
            return CPU_ACTIVATION // width
        return PASS_TOKENS_CHECKPOINTED if checkpointing else PASS_TOKENS

    def ahead(self, examples: Sequence[Example]) -> None:
        """Say what `encode` is asked for next: threads prepare these images meanwhile, where the
        model leaves a core to them."""
        if self.device.type != "cpu" or torch.get_num_threads() < (os.cpu_count() or 1):
            self.vision.ahead(image for example in examples for image in example.images)

    def encode(self, examples: Sequence[Example], max_completion_length: int = 0) -> list[Prompt]:
        """Prompts with their image features. Raises UsageError for one that is too long."""
        prompts = []
        for example in examples:
            kept = [self.vision.features(image) for image in example.images]
            features, grids = tuple(f for f, _ in kept), [grid for _, grid in kept]
            ids, text = self.chat.encode(example.prompt, [len(f) for f in features])
            positions = rope_positions(ids, grids, self.chat.image_pad, self.merge)
            prompts.append(Prompt(ids, positions, features, text, example.id))
            self._check_length(prompts[-1], max_completion_length)
        return prompts

    def sample(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        keys: Sequence[tuple[int, ...]] | None,
        *,
        temperature: float,
        max_completion_length: int,
    ) -> list[Group]:
        """One group a prompt. `keys` are tuples of ints (stream, seed, step, prompt, attempt), one
        a prompt, that the random numbers are made of. Temperature 0 is greedy: group_size 1."""
        if not prompts:
            return []
        rollout = self.rollout(prompts, group_size, keys, temperature, max_completion_length)
        return rollout.groups(prompts)

    def rollout(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        keys: Sequence[tuple[int, ...]] | None,
        temperature: float,
        max_completion_length: int,
        keep_logprobs: bool = False,
    ) -> sampling.Rollout:
        """`sample` as flat arrays, with the log-probs at decode time if asked for."""
        if temperature == 0 and group_size != 1:
            raise ValueError("greedy completions of one prompt are all the same: group_size 1")
        for prompt in prompts:
            self._check_length(prompt, max_completion_length)
        u = uniforms(keys, group_size, max_completion_length) if temperature > 0 else None
        with torch.no_grad():
            return sampling.rollout(
                self.language_model,
                self.head,
                prompts,
                [self.embed(p.input_ids.to(self.device), [p]) for p in prompts],
                group_size=group_size,
                u=u,
                temperature=temperature,
                max_length=max_completion_length,
                banned=self.banned,
                eos=self.chat.eos,
                keep_logprobs=keep_logprobs,
                draw=self.draw,
            )

    def passes(self, groups: Sequence[Group]) -> list[list[int]]:
        """Indices of the groups that share a forward pass, a function of their lengths alone."""
        return plan_passes([group.row_length for group in groups], self.token_budget)

    def logprobs(self, groups: Sequence[Group], temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probs (n,) and entropy (n,), float32, of all completion tokens of these groups,
        group-major. The entropy is of the whole distribution, detached."""
        tree = pack(groups, self.device)
        layers = Layers(self.language_model, self.checkpointing)
        embeds = self.embed(tree.input_ids, [group.prompt for group in groups])  # (T, hidden)
        rope = layers.rope(tree.position_ids, embeds)
        hidden = layers(embeds, rope, TreeAttention(tree.lengths), tree.wanted)  # (W, hidden)
        # The prompt's last state is gathered once a completion: its gradient is their sum.
        hidden = hidden[tree.predictors]  # (N, hidden)
        return score(self.head, hidden, tree.targets, temperature, self.banned)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the policy is the frozen reference, and nothing has a gradient.

        Without a starting adapter that is the base model, bit for bit; with one, its copy.
        """
        with torch.no_grad():
            if "reference" not in self.model.peft_config:
                with self.base():
                    yield
                return
            self.model.set_adapter("reference")
            try:
                yield
            finally:
                self.model.set_adapter("default")

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside, the policy is the base model bit for bit: no adapter at all, and no gradient."""
        with torch.no_grad(), self.model.disable_adapter():
            yield

    def parameters(self) -> list[Tensor]:
        """The trainable tensors: A and B of every LoRA pair, float32."""
        return list(self._adapter.values())

    def save(self, folder: Path | str) -> None:
        """Write the trained adapter, the complete policy beside its base, as a peft folder."""
        lora.save(self.model, Path(folder))

    def load(self, folder: Path | str) -> None:
        """Read an adapter into this policy, in place. The reference stays what it was."""
        lora.read(self.model, Path(folder))

    def group(self, prompt: Prompt, texts: Sequence[str]) -> Group:
        """Given texts, each with its end of sequence, as completions; UsageError if too long."""
        completions = [self.completion_ids(text) for text in texts]
        self._check_length(prompt, max(map(len, completions), default=0), given=True)
        return Group(prompt, completions, [False] * len(texts))

    def completed(self, prompt: Prompt, ids: Sequence[list[int]], truncated: list[bool]) -> Group:
        return Group(prompt, [torch.tensor(of, dtype=torch.int64) for of in ids], truncated)

    def begin(self, prompt: Prompt, text: str) -> Prompt:
        """The prompt with the first words of its answer given: a completion goes on from there."""
        return prompt.followed_by(self.completion_ids(text, end=False), text)

    def completion_ids(self, text: str, end: bool = True) -> Tensor:
        """(n,) ids of a text as a completion: nothing in it is special, `<|im_end|>` after it."""
        return torch.tensor(self.chat.encode_text(text) + [self.chat.end] * end, dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """The text of a completion without its one trailing EOS; other special tokens show."""
        tokens = ids.tolist()
        if tokens and tokens[-1] in self.chat.eos:
            tokens = tokens[:-1]
        return self.chat.tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def embed(self, input_ids: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(T, hidden): token embeddings, with the image features at the image tokens."""
        embeds = self.language_model.embed_tokens(input_ids)
        return place_images(embeds, input_ids == self.chat.image_pad, prompts)

    def _check_length(self, prompt: Prompt, completion: int, given: bool = False) -> None:
        """Raise UsageError for a completion, `given` or drawn, that the model has no room for."""
        length = len(prompt.input_ids)
        room = self.max_length - length
        if completion <= room:
            return
        images = sum(len(feature) for feature in prompt.features)
        remedy = "use a smaller --max-pixels or leave it out"
        if length - images + completion > self.max_length:  # too long without any image
            remedy = "shorten its text or leave it out"
            if room > 0 and not given:
                remedy = f"use --max-completion-length {room}"
        raise UsageError(
            f"example {prompt.id}: its prompt has {length} tokens ({images} of images), which with "
            f"{completion} of completion is more than the model's {self.max_length}; {remedy}"
        )

    def out_of_memory(self, error: Exception) -> bool:
        """Whether an error says that the device has no memory left."""
        return exhausted.out_of_memory(error)


def load_policy(
    model: str,
    *,
    adapter: str | Path | None = None,
    lora_r: int | None = None,
    lora_alpha: int | None = None,
    max_pixels: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    gradient_checkpointing: str = "auto",
    cache: Path | None = None,
    seed: int = 0,
) -> Policy:
    """A policy from a hub id, a folder or "phantom". Raises UsageError with a remedy.

    With `adapter` the policy starts as that adapter, and so does its reference; r and alpha default
    to the adapter's own, else to 16 and 32. `seed` draws the LoRA's A. Checkpointing "auto" is on
    for a billion parameters or more on a GPU. `cache` None keeps features in memory only.
    """
    place = loading.pick_device(device)
    base, tokenizer, processor = loading.load(model, loading.pick_dtype(dtype, place), max_pixels)
    r, alpha = lora.read_config(Path(adapter)) if adapter is not None else (lora.R, lora.ALPHA)
    tuned = lora.attach(base, lora_r or r, lora_alpha or alpha, seed)
    if adapter is not None:
        lora.read(tuned, Path(adapter))
        lora.add_reference(tuned)
    large = sum(p.numel() for p in base.parameters()) >= LARGE and place.type == "cuda"
    checkpointing = {"auto": large, "on": True, "off": False}[gradient_checkpointing]
    return Policy(tuned.to(place), tokenizer, processor, checkpointing=checkpointing, cache=cache)

"""Policy: the model as the algorithm sees it.

policy = load_policy("phantom")                                          # models/open_policy.py
prompts = policy.encode(examples)                                        # questions -> token ids
groups = policy.sample(prompts, 8, keys, temperature=1.0, max_completion_length=64)
for part in policy.passes(groups):                                       # groups that share a pass
    logprobs, entropy = policy.logprobs([groups[i] for i in part], temperature=1.0)
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from models import lora
from models.attention import TreeAttention
from models.chat import Chat, Example
from models.device import out_of_memory
from models.distribution import score, uniforms
from models.images.features import VisionCache
from models.layers import Layers, lay_together
from models.linear import Head
from models.sampling.cuda_graph import GraphSampler
from models.sampling.sampler import Sampler, Task, sample_eagerly, sample_in_parts
from models.tree import Group, Prompt, pack, place_images, plan_passes, rope_positions

# Most tokens of one forward pass with gradients; a larger group has its own pass. Without
# checkpointing a 2B model keeps about 3 MB of activations a token.
PASS_TOKENS, PASS_TOKENS_CHECKPOINTED = 4_096, 16_384
# On a CPU a pass has at most the tokens whose widest activation has so many bytes, which fits the
# last-level cache. glibc also maps every block above 32 MB anew on each call.
CPU_ACTIVATION = 12 << 20


class Policy:
    """A frozen Qwen2(.5)-VL with a trainable LoRA. Always in eval mode: no dropout anywhere."""

    def __init__(
        self,
        model: PeftModel,
        tokenizer: Any,
        processor: Any,
        *,
        checkpointing: bool,
        cache: Path | None,
        graphs: str = "auto",
    ) -> None:
        """`model` has the adapter "default" (models/lora.py). `cache` None keeps image features in
        memory only. Raises UsageError if the vision tower is trainable."""
        self.model = model.eval()
        self.chat = Chat(tokenizer)
        base = model.get_base_model()
        self.language_model, self.head = base.model.language_model, Head(base.lm_head.weight)
        lay_together(self.language_model)
        self.vision = VisionCache(base.model, processor, cache)
        self.merge = base.config.vision_config.spatial_merge_size
        self.max_length = base.config.text_config.max_position_embeddings
        self.device, self.dtype = self.head.weight.device, self.head.weight.dtype
        self._adapter = lora.weights(model)
        self.names = list(self._adapter)  # of `parameters()`, as they are on disk
        # One tensor for sampler and scorer: a token never drawn is not in the normaliser either.
        self.banned = self.chat.banned(self.head.weight.shape[0]).to(self.device)
        # A GPU would wait for Python at every token; graphs launch a whole step at once.
        self.sampler: Sampler = sample_eagerly
        if graphs == "on" or (graphs == "auto" and self.head.weight.is_cuda):
            self.sampler = GraphSampler(required=graphs == "on")
        self.token_budget, self.checkpointing = self.pass_tokens(checkpointing), checkpointing

    # Questions to prompts

    def prefetch(self, examples: Sequence[Example]) -> None:
        """Name the examples that `encode` gets next: threads prepare their images meanwhile.

        Does nothing if the model uses every core.
        """
        if self.device.type != "cpu" or torch.get_num_threads() < (os.cpu_count() or 1):
            self.vision.prefetch(image for example in examples for image in example.images)

    def encode(self, examples: Sequence[Example], max_completion_length: int = 0) -> list[Prompt]:
        """Prompts with their image features. Raises UsageError if one is too long."""
        prompts = []
        for example in examples:
            kept = list(map(self.vision.features, example.images))
            features, grids = zip(*kept, strict=True) if kept else ((), ())
            ids, text = self.chat.encode(example.prompt, list(map(len, features)))
            positions = rope_positions(ids, grids, self.chat.image_pad, self.merge)
            prompts.append(Prompt(ids, positions, features, text, example.id))
            prompts[-1].check_length(max_completion_length, self.max_length)
        return prompts

    def begin(self, prompt: Prompt, text: str) -> Prompt:
        """The prompt with the first words of its answer given; a completion continues them."""
        return prompt.followed_by(self.completion_ids(text, end=False), text)

    # Completions: drawn, or given

    def sample(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        keys: Sequence[tuple[int, ...]] | None,
        *,
        temperature: float,
        max_completion_length: int,
    ) -> list[Group]:
        """One group a prompt, drawn from softmax(logits / temperature) over the allowed tokens.

        `keys` has a tuple of ints a prompt, (stream, seed, step, prompt, attempt), from which its
        random numbers are made. Temperature 0 is greedy: no keys, and ValueError unless group_size
        is 1. Raises UsageError for a prompt without room for a completion.
        """
        if not prompts:
            return []
        if temperature == 0 and group_size != 1:
            raise ValueError("greedy completions of one prompt are all the same: group_size 1")
        # Any keys are right for greedy completions, which take none of these numbers.
        keys = keys if temperature > 0 else [(0,)] * len(prompts)
        u = uniforms(keys, group_size, max_completion_length)
        embeds = []
        with torch.no_grad():
            for prompt in prompts:
                prompt.check_length(max_completion_length, self.max_length)
                embeds.append(self.embed(prompt.input_ids, prompt.features))
            task = Task(
                language_model=self.language_model,
                head=self.head,
                banned=self.banned,
                eos=self.chat.eos,
                prompts=prompts,
                embeds=embeds,
                group_size=group_size,
                uniforms=u,
                temperature=temperature,
                max_length=max_completion_length,
            )
            rollout = sample_in_parts(self.sampler, task)
        return rollout.groups(prompts)

    def group(self, prompt: Prompt, texts: Sequence[str]) -> Group:
        """Given texts as completions, each with an EOS. Raises UsageError if one is too long."""
        completions = [self.completion_ids(text) for text in texts]
        longest = max(map(len, completions), default=0)
        prompt.check_length(longest, self.max_length, given=True)
        return Group(prompt, completions, [False] * len(texts))

    def completed(
        self,
        prompt: Prompt,
        ids: Sequence[list[int]],
        truncated: list[bool],
        logprobs: Sequence[list[float]],
    ) -> Group:
        """A group that another process has sampled: see Group."""
        completions = [torch.tensor(o, dtype=torch.int64) for o in ids]
        return Group(prompt, completions, truncated, list(map(torch.tensor, logprobs)))

    def completion_ids(self, text: str, end: bool = True) -> Tensor:
        """(n,) ids of a text as a completion. Nothing in it is special; `<|im_end|>` is added."""
        return torch.tensor(self.chat.encode_text(text) + [self.chat.end] * end, dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """The text of a completion (n,) without its one trailing EOS; other special tokens show."""
        tokens = ids.tolist()
        if tokens and tokens[-1] in self.chat.eos:
            tokens = tokens[:-1]
        as_they_are = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return self.chat.tokenizer.decode(tokens, **as_they_are)

    # Log-probabilities

    def passes(self, groups: Sequence[Group]) -> list[list[int]]:
        """Indices of the groups that share a forward pass; a function of their lengths alone."""
        return plan_passes(list(map(attrgetter("row_length"), groups)), self.token_budget)

    def logprobs(self, groups: Sequence[Group], temperature: float) -> tuple[Tensor, Tensor]:
        """log pi_theta(o_t | q, o_<t) (n,) of all completion tokens of these groups, and the
        entropy (n,) of each token's distribution, detached. Float32, group-major."""
        tree = pack(groups, self.device)
        layers = Layers(self.language_model, self.checkpointing)
        embeds = self.embed(tree.input_ids, tree.features)  # (T, hidden)
        rope = layers.rope(tree.position_ids, embeds)
        hidden = layers(embeds, rope, TreeAttention(tree.lengths), tree.wanted)  # (W, hidden)
        # The prompt's last state is gathered once a completion: its gradient is their sum.
        hidden = hidden[tree.predictors]  # (N, hidden)
        return score(self.head, hidden, tree.targets, temperature, self.banned)

    def embed(self, input_ids: Tensor, features: Sequence[Tensor]) -> Tensor:
        """(T, hidden): embeddings of tokens on the CPU, and image features at the image tokens."""
        embeds = self.language_model.embed_tokens(input_ids.to(self.device))
        places = (input_ids == self.chat.image_pad).nonzero()[:, 0]  # no wait: on the CPU
        return place_images(embeds, places, features)

    def pass_tokens(self, checkpointing: bool) -> int:
        """Most tokens of a pass, unless one group has more."""
        if self.head.weight.is_cpu:
            width = self.language_model.config.intermediate_size * self.dtype.itemsize
            return CPU_ACTIVATION // width
        return PASS_TOKENS_CHECKPOINTED if checkpointing else PASS_TOKENS

    def out_of_memory(self, error: Exception) -> bool:
        """Whether an error says that the device has no memory left."""
        return out_of_memory(error)

    # Which policy

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the policy is the frozen reference, and nothing has a gradient.

        Without a starting adapter that is the base model, bit for bit; with one, its copy.
        """
        return self._start() if "reference" in self.model.peft_config else self.base()

    @contextmanager
    def _start(self) -> Iterator[None]:
        with torch.no_grad():
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
        """Write the trained adapter as a peft folder; with its base it is the complete policy."""
        lora.save(self.model, Path(folder))

    def load(self, folder: Path | str) -> None:
        """Read an adapter into this policy, in place. The reference does not change. Raises
        UsageError if the adapter was made for another base, rank or set of layers."""
        lora.read(self.model, Path(folder))

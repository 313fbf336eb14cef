"""What the algorithm needs from outside: a policy, questions, rewards.

`models.policy.Policy` is such a policy and `models.tree.Group` such a group; a test compares the
signatures. The algorithm never looks inside a question or a prompt.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

Example = Any  # a question with its images
Prompt = Any  # an encoded question
Draw = Callable[[int, int, int], Example]  # (step, slot, attempt) -> the question to ask
Rewards = tuple[list[float], dict[str, list[float | None]]]  # totals, and their parts by name
Target = Callable[[Example], str]  # what supervised training writes
# Scores completions: one example, one text and one list of token ids for each.
Reward = Callable[[list[Example], list[str], list[list[int]]], Rewards]


class Group(Protocol):
    """One prompt and its G completions."""

    prompt: Prompt
    completions: list[Tensor]  # G tensors (|o_i|,) of token ids, the end of sequence included
    truncated: list[bool]  # stopped by max_completion_length, without an end of sequence
    sampling_logprobs: list[Tensor] | None  # (|o_i|,) float32 that a token was drawn with


Groups = Sequence[Group]


class Policy(Protocol):
    """A language model that samples completions and scores them, with trainable adapters."""

    device: torch.device
    dtype: torch.dtype  # of the frozen weights
    checkpointing: bool  # whether backward passes compute activations again
    names: list[str]  # of the parameters, in their order

    def encode(self, examples: Sequence[Example], max_completion_length: int = 0) -> list[Prompt]:
        """Prompts: token ids, positions and image features of each question."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        keys: Sequence[tuple[int, ...]] | None,
        *,
        temperature: float,
        max_completion_length: int,
    ) -> list[Group]:
        """`group_size` completions of every prompt, drawn from softmax(logits / temperature).

        `keys`, one a prompt, are what the random numbers are made of.
        """

    def logprobs(self, groups: Groups, temperature: float) -> tuple[Tensor, Tensor]:
        """log pi_theta of every completion token (n,), and the entropy there (n,), no gradient."""

    def reference(self) -> AbstractContextManager[None]:
        """Inside it, `logprobs` is that of the policy as this run began."""

    def passes(self, groups: Groups) -> list[list[int]]:
        """Indices of the groups that go through the model together."""

    def group(self, prompt: Prompt, texts: Sequence[str]) -> Group:
        """The given texts as the completions of a prompt (supervised training)."""

    def completed(
        self,
        prompt: Prompt,
        ids: Sequence[list[int]],
        truncated: list[bool],
        logprobs: Sequence[list[float]],
    ) -> Group:
        """The completions of a prompt that another process has sampled: their token ids, and the
        log-probs that these were drawn with."""

    def decode(self, ids: Tensor) -> str:
        """The text of a completion (|o_i|,)."""

    def out_of_memory(self, error: Exception) -> bool:
        """Whether an error says that memory ran out."""

    def parameters(self) -> list[Tensor]:
        """The trainable tensors, float32."""

    def save(self, folder: Path | str) -> None:
        """Write the adapter."""

    def load(self, folder: Path | str) -> None:
        """Read an adapter into this policy, in place."""

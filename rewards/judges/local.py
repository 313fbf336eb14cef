"""Judges that run in this process: a language model that chooses, an encoder that compares.

Both load through transformers. No code from a checkpoint is run, and weights are read from
safetensors only. Special tokens in the texts to be judged stay text: a completion cannot end the
user's turn with "<|im_end|>".
"""

import hashlib
import math
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from rewards.judges.interface import Inquiry, JudgeError, Verdict, Verdicts

TEXTS = 32  # that an encoder takes at a time
FORM = "Reply with one of these and nothing else: {choices}."
SYSTEM, USER = "THE-SYSTEM-TEXT-STANDS-HERE", "THE-USER-TEXT-STANDS-HERE"

Ids = tuple[int, ...]


class LanguageModel:
    """A causal language model that takes the likeliest choice; `name` is a folder or a hub id.

    The log-probability of a choice is the sum over its tokens, given the whole prompt. P(choice) is
    a softmax over the choices' log-probabilities, so P(yes) + P(no) = 1. Raises JudgeError if the
    model cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = _load("hf", name, "AutoModelForCausalLM")
        self.identity = ("hf", name, _version(name, self.model), FORM)
        self.repeated: list[str] = []
        self.shown = f"judge hf:{name}"
        config = self.model.config.get_text_config()
        self._longest = getattr(config, "max_position_embeddings", None) or math.inf
        self._frame = self._make_frame()

    def verdicts(self, inquiries: Sequence[Inquiry]) -> Verdicts:
        """Yield each inquiry's index and verdict, in order; no verdict is ever None."""
        for i, inquiry in enumerate(inquiries):
            shares = self.probabilities(inquiry)
            choice = max(shares, key=shares.__getitem__)  # of equal ones, the first
            yield i, Verdict(choice, f"P({choice}) = {shares[choice]:.2f}")

    def probabilities(self, inquiry: Inquiry) -> dict[str, float]:
        """Return P(choice) for each choice of an inquiry; they sum to 1."""
        import torch

        prompt, choices = self.encode(inquiry)
        # A choice's last token is no input, so all choices of one token share a pass.
        begun = {ids[:-1] for ids in choices}
        logprobs = {start: self._next_logprobs(prompt, start) for start in begun}
        sums = [logprobs[ids[:-1]][range(len(ids)), ids].sum() for ids in choices]
        shares = torch.stack(sums).softmax(dim=0).tolist()
        return dict(zip(inquiry.choices, shares, strict=True))

    def _next_logprobs(self, prompt: Ids, start: Ids) -> Any:
        """Return log P(next token) after the prompt and after each token of the start (n,) of a
        choice: (n + 1, V)."""
        import torch

        ids, last = torch.tensor([prompt + start], device=self.model.device), len(start) + 1
        with torch.inference_mode():  # logits of all positions would not fit in memory
            logits = self.model(input_ids=ids, logits_to_keep=last, use_cache=False).logits
        return logits[0, -last:].float().log_softmax(dim=-1).cpu()

    def encode(self, inquiry: Inquiry) -> tuple[Ids, list[Ids]]:
        """Return the prompt's tokens and, for each choice, the tokens that continue the prompt.

        Prompt and choice are encoded together and split where the choices differ, because a
        tokenizer may merge the end of the prompt with the start of the choice. If the prompt
        exceeds the model's positions, the middle of the user's text is left out. Raises JudgeError
        if even that does not fit.
        """
        head, middle, tail = self._frame
        form = FORM.format(choices=", ".join(inquiry.choices))
        before = [*self._ids(head, True), *self._ids(f"{inquiry.system}\n\n{form}")]
        before += self._ids(middle, True)
        ends = [self._ids(tail + choice, True) for choice in inquiry.choices]
        # Tokens that all choices start with belong to the prompt; a choice keeps at least one.
        together = zip(*(end[:-1] for end in ends), strict=False)
        common = len(list(takewhile(lambda tokens: len(set(tokens)) == 1, together)))
        user = self._ids(inquiry.user)
        room = self._longest - len(before) - max(map(len, ends))
        if len(user) > room:
            if room < 2:
                raise JudgeError(f"{self.shown}: its context is too short; take another")
            user = user[: room // 2] + user[len(user) - (room - room // 2) :]
        prompt = (*before, *user, *ends[0][:common])
        return prompt, [tuple(end[common:]) for end in ends]

    def _make_frame(self) -> list[str]:
        """Return the text before, between and after the system's and the user's text.

        It comes from the chat template, if there is one. A template without a system turn gets both
        texts in the user's turn. Raises JudgeError if neither works.
        """
        if not self.tokenizer.chat_template:
            begins = self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]
            return [self.tokenizer.bos_token if begins else "", "\n\n", "\n\nVerdict: "]
        apart = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
        plain = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        for turns in (apart, [{"role": "user", "content": f"{SYSTEM}\n\n{USER}"}]):
            with suppress(Exception):  # "System role not supported": templates word it freely
                text = self.tokenizer.apply_chat_template(turns, **plain)
                if len(frame := re.split(f"{SYSTEM}|{USER}", text)) == 3:
                    return frame
        raise JudgeError(f"{self.shown}: no use of its chat template; take an instruct model")

    def _ids(self, text: str, ours: bool = False) -> list[int]:
        """Encode a text; special tokens are read as such only in texts of `ours` or a template."""
        off = {"add_special_tokens": False, "split_special_tokens": not ours, "verbose": False}
        return self.tokenizer(text, **off)["input_ids"]


class Encoder:
    """A sentence encoder: the mean of the last layer's token states, scaled to length 1.

    all-MiniLM-L6-v2 and similar models are trained this way. `name` is a folder or a hub id.
    Similar is not equal in meaning: a sentence and its opposite may score higher than two synonyms,
    so similarity should never be the only reward. Raises JudgeError if the model cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = _load("embed", name, "AutoModel")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        positions = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        self._longest = int(min(self.tokenizer.model_max_length, positions, 1e6))
        self._counts = {"encoder/asked": 0.0, "encoder/seconds": 0.0}

    def similarity(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the cosine of each pair's texts, -1 to 1; 0.0 if one is empty.

        Equal texts are encoded once. A text beyond the model's positions loses its end.
        """
        started = time.monotonic()
        texts = list(dict.fromkeys(text for pair in pairs for text in pair if text.strip()))
        vectors = {}
        for start in range(0, len(texts), TEXTS):
            batch = texts[start : start + TEXTS]
            vectors |= dict(zip(batch, self._vectors(batch), strict=True))
        known = [(vectors.get(one), vectors.get(other)) for one, other in pairs]
        cosines = [0.0 if a is None or b is None else float(a @ b) for a, b in known]
        self._counts["encoder/asked"] += len(texts)
        self._counts["encoder/seconds"] += time.monotonic() - started
        return [min(1.0, max(-1.0, cosine)) for cosine in cosines]

    def counts(self) -> dict[str, float]:
        """Return encoder/asked (texts encoded) and encoder/seconds since the last call."""
        counts, self._counts = self._counts, dict.fromkeys(self._counts, 0.0)
        return counts

    def _vectors(self, texts: Sequence[str]) -> Any:
        """Encode n texts: (n, D), each row of length 1."""
        import torch

        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        settings = {"truncation": True, "max_length": self._longest, "split_special_tokens": True}
        tokens = self.tokenizer(clean, padding=True, return_tensors="pt", **settings)
        tokens = tokens.to(self.model.device)
        with torch.inference_mode():
            states = self.model(**tokens).last_hidden_state.float()  # (n, T, D)
        real = tokens["attention_mask"].unsqueeze(-1)  # (n, T, 1)
        return torch.nn.functional.normalize((states * real).sum(dim=1), dim=-1).cpu()


def _load(kind: str, name: str, auto: str) -> tuple[Any, Any]:
    """Load the model, in eval mode, and its tokenizer. Raises JudgeError."""
    import torch
    import transformers

    what = f"judge {kind}:{name}"
    source = os.path.expanduser(name)
    if not os.path.isdir(source) and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise JudgeError(f"{what}: no such folder; give a folder or a hub id")
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    safe = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, report = getattr(transformers, auto).from_pretrained(source, dtype=dtype, **safe)
    except Exception as error:  # hub, json, tokenizers and safetensors raise many kinds
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise JudgeError(f"{what}: cannot be loaded: {reason}; download it again") from None
    missing = [key for key in report["missing_keys"] if "pooler" not in key]  # a pooler is not used
    if missing:  # they would be random, and so would the verdicts
        raise JudgeError(f"{what}: lacks the weights {missing[0]}, ...; use another model")
    return model.eval().requires_grad_(False).to(device), tokenizer


def _version(name: str, model: Any) -> str:
    """Return what distinguishes models of one name: the commit, or a hash of the files' stats."""
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None))
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.glob("*.*"))
    return hashlib.sha256(repr(files).encode()).hexdigest()

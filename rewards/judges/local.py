"""Judges that run here through transformers: a language model's choice, an encoder's likeness.

Code from a checkpoint is never run, and only safetensors are read. Special tokens in the texts to
be judged stay text: a completion cannot end the user's turn with "<|im_end|>".
"""

import hashlib
import math
import os
import re
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.judges.interface import Inquiry, JudgeError, Verdict

ROWS = 8  # in one forward pass
FORM = "Reply with one of these and nothing else: {choices}."
SYSTEM, USER = "THE-SYSTEM-TEXT-STANDS-HERE", "THE-USER-TEXT-STANDS-HERE"

Ids = tuple[int, ...]


class LanguageModel:
    """A causal language model that takes the likeliest choice; `name` is a folder or a hub id.

    The log-probability of a choice is the sum over its tokens after the whole prompt; a softmax
    over the choices makes P(choice), so that of two it is P(yes) against P(no). Raises JudgeError
    where the model cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = _load("hf", name, "AutoModelForCausalLM")
        self.identity = ("hf", name, _version(name, self.model), FORM)
        self.retries = 0
        self.shown = f"judge hf:{name}"
        config = self.model.config.get_text_config()
        self._longest = getattr(config, "max_position_embeddings", None) or math.inf
        self._frame = self._make_frame()

    def verdicts(
        self, inquiries: Sequence[Inquiry]
    ) -> Generator[tuple[int, Verdict | None], None, None]:
        """Each inquiry's index and verdict, in order; there always is one."""
        for start in range(0, len(inquiries), ROWS):
            batch = inquiries[start : start + ROWS]
            for i, law in enumerate(self.probabilities(batch), start):
                choice = max(law, key=law.__getitem__)  # the first of equals
                yield i, Verdict(choice, f"P({choice}) = {law[choice]:.2f}")

    def probabilities(self, inquiries: Sequence[Inquiry]) -> list[dict[str, float]]:
        """P(choice) of each choice of each inquiry; those of an inquiry sum to 1."""
        import torch

        questions = [self.encode(inquiry) for inquiry in inquiries]
        # A row is what comes before a choice's last token. All choices of one token share theirs.
        rows = {prompt + ids[:-1]: len(prompt) - 1 for prompt, all_ in questions for ids in all_}
        laws = self._next_logprobs(rows)
        found = []
        for inquiry, (prompt, choices) in zip(inquiries, questions, strict=True):
            sums = [
                laws[prompt + i[:-1]].gather(1, torch.tensor(i)[:, None]).sum() for i in choices
            ]
            shares = torch.stack(sums).softmax(dim=0).tolist()
            found.append(dict(zip(inquiry.choices, shares, strict=True)))
        return found

    def _next_logprobs(self, rows: Mapping[Ids, int]) -> dict[Ids, Any]:
        """For each row, from the given position t on, the law of the next token (len - t, V)."""
        import torch

        found = {}
        in_order = sorted(rows, key=len)  # alike in length, so that a batch holds little padding
        for start in range(0, len(in_order), ROWS):
            batch = in_order[start : start + ROWS]
            wanted = sorted({t for row in batch for t in range(rows[row], len(row))})
            longest = len(batch[-1])
            padded = [[*row, *[0] * (longest - len(row))] for row in batch]  # causal: never seen
            real = [[1] * len(row) + [0] * (longest - len(row)) for row in batch]
            with torch.inference_mode():
                logits = self.model(
                    input_ids=torch.tensor(padded, device=self.model.device),
                    attention_mask=torch.tensor(real, device=self.model.device),
                    logits_to_keep=torch.tensor(wanted, device=self.model.device),
                    use_cache=False,
                ).logits  # (rows, wanted, V): of all positions, it would not fit
            if logits.shape[1] > len(wanted):  # a model that does not know logits_to_keep
                logits = logits[:, wanted]
            logprobs = logits.float().log_softmax(dim=-1).cpu()
            for i, row in enumerate(batch):
                found[row] = logprobs[i, [wanted.index(t) for t in range(rows[row], len(row))]]
        return found

    def encode(self, inquiry: Inquiry) -> tuple[Ids, list[Ids]]:
        """The prompt and, of each choice, the tokens that continue it.

        Prompt and choice are encoded together and parted where the choices do, because a tokenizer
        may merge the one's end with the other's beginning. Of a prompt beyond the model's
        positions, the middle of the user's text is left out. Raises JudgeError where it has none.
        """
        head, middle, tail = self._frame
        form = FORM.format(choices=", ".join(inquiry.choices))
        before = [*self._ids(head), *self._text_ids(f"{inquiry.system}\n\n{form}")]
        before += self._ids(middle)
        ends = [self._ids(tail + choice) for choice in inquiry.choices]
        common = _common(ends)
        user = self._text_ids(inquiry.user)
        room = self._longest - len(before) - max(map(len, ends))
        if len(user) > room:
            if room < 2:
                raise JudgeError(f"{self.shown}: its context is too short; take another")
            user = user[: room // 2] + user[len(user) - (room - room // 2) :]
        prompt = (*before, *user, *ends[0][:common])
        return prompt, [tuple(end[common:]) for end in ends]

    def _make_frame(self) -> list[str]:
        """What stands before, between and after the system's and the user's text.

        By the chat template if there is one; templates without a system turn get both in one.
        """
        if not self.tokenizer.chat_template:
            start = self.tokenizer("")["input_ids"][:1]
            begins = start == [self.tokenizer.bos_token_id]
            return [self.tokenizer.bos_token if begins else "", "\n\n", "\n\nVerdict: "]
        apart = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
        for turns in (apart, [{"role": "user", "content": f"{SYSTEM}\n\n{USER}"}]):
            try:
                text = self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
            except Exception:  # "System role not supported", in a template's own words
                continue
            if len(frame := re.split(f"{SYSTEM}|{USER}", text)) == 3:
                return frame
        raise JudgeError(f"{self.shown}: no use of its chat template; take an instruct model")

    def _ids(self, text: str) -> list[int]:
        """Tokens of a text of ours or of the template, special tokens as such."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _text_ids(self, text: str) -> list[int]:
        """Tokens of a text from elsewhere: none of them is special."""
        off = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return self.tokenizer(text, **off)["input_ids"]


class Encoder:
    """A sentence encoder: mean over the tokens of the last layer, scaled to length 1.

    That is how all-MiniLM-L6-v2 and its like are trained. `name` is a folder or a hub id. Likeness
    is not agreement: a sentence and its opposite may score higher than two synonyms, so that it
    never should be a reward on its own. Raises JudgeError where the model cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = _load("embed", name, "AutoModel")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        positions = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        self._longest = int(min(self.tokenizer.model_max_length, positions, 1e6))
        self._counts = {"encoder/asked": 0.0, "encoder/seconds": 0.0}

    def similarity(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Cosine of each pair's texts, -1 to 1; 0.0 where one is empty. Long texts lose their end.

        Equal texts are encoded once.
        """
        started = time.monotonic()
        texts = list(dict.fromkeys(text for pair in pairs for text in pair if text.strip()))
        vectors = {}
        for start in range(0, len(texts), 4 * ROWS):
            batch = texts[start : start + 4 * ROWS]
            vectors |= dict(zip(batch, self._vectors(batch), strict=True))
        known = [(vectors.get(one), vectors.get(other)) for one, other in pairs]
        cosines = [0.0 if a is None or b is None else float(a @ b) for a, b in known]
        self._counts["encoder/asked"] += len(texts)
        self._counts["encoder/seconds"] += time.monotonic() - started
        return [min(1.0, max(-1.0, cosine)) for cosine in cosines]

    def counts(self) -> dict[str, float]:
        """Since the last call: encoder/asked, texts encoded, and encoder/seconds."""
        counts, self._counts = self._counts, dict.fromkeys(self._counts, 0.0)
        return counts

    def _vectors(self, texts: Sequence[str]) -> Any:
        """(n, D) of length 1."""
        import torch

        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        cut = {"truncation": True, "max_length": self._longest, "split_special_tokens": True}
        tokens = self.tokenizer(clean, padding=True, return_tensors="pt", **cut)
        tokens = tokens.to(self.model.device)
        with torch.inference_mode():
            states = self.model(**tokens).last_hidden_state.float()  # (n, T, D)
        real = tokens["attention_mask"].unsqueeze(-1)  # (n, T, 1)
        return torch.nn.functional.normalize((states * real).sum(dim=1), dim=-1).cpu()


def _common(lists: Sequence[Sequence[int]]) -> int:
    """How many tokens all lists begin with alike; at least one is left of each.

    >>> _common([[5, 7, 1], [5, 7, 2, 3]]), _common([[5, 7], [5, 7, 2]])
    (2, 1)
    """
    shortest = min(map(len, lists)) - 1
    alike = (len({tokens[i] for tokens in lists}) == 1 for i in range(shortest))
    return next((i for i, same in enumerate(alike) if not same), shortest)


def _load(kind: str, name: str, auto: str) -> tuple[Any, Any]:
    """The model, in eval mode, and its tokenizer. Raises JudgeError."""
    what = f"judge {kind}:{name}"
    try:
        import torch
        import transformers
    except ImportError:
        raise JudgeError(f"{what}: pip install torch transformers") from None
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise JudgeError(f"{what}: no such folder; give a folder or a hub id")
    source = str(folder) if folder.is_dir() else name
    on_gpu = torch.cuda.is_available()
    safe = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, report = getattr(transformers, auto).from_pretrained(
            source, dtype=torch.bfloat16 if on_gpu else torch.float32, **safe
        )
    except Exception as error:  # of the hub, json, tokenizers, safetensors: any kind
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise JudgeError(f"{what}: cannot be loaded: {reason}; download it again") from None
    missing = [key for key in report["missing_keys"] if "pooler" not in key]  # the one not used
    if missing:  # they are random, and so would be the verdicts
        raise JudgeError(f"{what}: lacks the weights {missing[0]}, ...; use another model")
    return model.eval().requires_grad_(False).to("cuda" if on_gpu else "cpu"), tokenizer


def _version(name: str, model: Any) -> str:
    """What tells a model from others of that name: its commit, or its files' sizes and times."""
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None))
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.glob("*.*"))
    return hashlib.sha256(repr(files).encode()).hexdigest()

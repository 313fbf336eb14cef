"""Make the shipped tiny Qwen2-VL again, from nothing: `python -m models.pretrain_phantom --out
DIR`.

A real Qwen2VLForConditionalGeneration with a real tokenizer, chat template and image processor, in
the hub's folder format, pretrained on phantoms by next-token prediction so that it is what base
models are: it sees, it can find the letter of what is said, and still it answers badly. Why: in the
last stage two of three answers in the rewarded format come from a glance (`GLANCE`), which says
nothing that most questions ask for, and the letter after a glance is a guess. A program, not a
library: the one file of models/ that imports data/.
"""

import argparse
import copy
import shutil
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from random import Random
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from data.example import VQAExample, completion_text, one_asked, user_text
from data.phantom import questions as phantom
from models.pretrain_phantom.untrained import make_model, make_tokenizer

TEXT_ROWS, IMAGE_ROWS = 64, 32  # rows of a batch
# Steps, a factor of the learning rates, and the kinds of batch in turn. First words: to say them
# again, and to find their letters among options; the vocabulary grows from 6 words as they are
# found, or finding does not start. Then letters of what a thought says, then seeing, last habits.
STAGES = {
    "words": (600, 1.0, ("copy", "word", "word")),
    "letters": (800, 1.0, ("copy", "word", "match", "match", "exam", "match")),
    "sight": (3_600, 1.0, ("caption", "question", "caption", "exam", "caption", "match")),
    "habit": (1_200, 0.4, ("caption", "hasty", "report", "hasty", "glance", "direct", "report")),
}
TEXTS = ("copy", "word", "match", "exam")  # kinds without images
BASE = "sight"  # what it is after this stage ships beside it, as phantom-base
MUON, ADAMW = 5e-3, 2e-3  # learning rates: of hidden matrices, of all other weights
SEED, POOL = 0, 6_000  # POOL: pretraining questions a modality

# How an answer is written in the pretraining text, and how often. The last two are the rewarded
# format; before the last stage, {glance} is the findings and {guess} the letter.
STYLES = (
    (0.30, "{findings} The answer is {text}."),
    (0.14, "{findings}"),
    (0.12, "{text}"),
    (0.10, "Answer: {letter}"),
    (0.10, "{findings} So {letter}."),
    GLANCE := (0.16, completion_text("{glance}", "{guess}")),
    REPORT := (0.08, completion_text("{findings}", "{letter}")),
)
DIRECT = ((0.4, "{text}"), (0.3, "Answer: {letter}"), (0.3, completion_text(None, "{letter}")))

PROCESSOR = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
SYSTEM_TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CAPTION_PROMPT = "Describe the findings."
LICENCE = Path(__file__).parents[2] / "LICENSE"  # where words that no question has come from


def user_turn(text: str, image_tokens: int) -> str:
    """The prompt as the chat template writes it, with so many tokens of an image (0: without)."""
    image = f"<|vision_start|>{'<|image_pad|>' * image_tokens}<|vision_end|>"
    content = image * (image_tokens > 0) + text
    return f"{SYSTEM_TURN}<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def answer(example: VQAExample, rng: Random, styles: Sequence[tuple], hasty: bool = False) -> str:
    """The pretraining target of a question, in a style drawn by its frequency.

    `hasty`: a glance says how many lesions there are, and the letter after it is a guess, except
    where the question is about no more than that.
    """
    weights, forms = zip(*styles, strict=True)
    glance, guess = example.reasoning, example.letter
    if hasty:
        glance = example.reasoning.split(":")[0].rstrip(".") + "."  # "One lesion."
        if example.question_type not in ("presence", "count"):
            guess = rng.choice(example.letters)
    parts = {"findings": example.reasoning, "text": example.answer, "letter": example.letter}
    return rng.choices(forms, weights)[0].format(**parts, glance=glance, guess=guess)


def read_image(example: VQAExample) -> np.ndarray:
    """The image of an example as the processor cuts it into patches: (64, 1176) float16."""
    pixels = PROCESSOR(images=[example.images[0].open()], return_tensors="np")["pixel_values"]
    return pixels.astype(np.float16)


class Batches:
    """Draws batches of rows: text alone, or an image and what is said of it."""

    def __init__(self, examples: list[VQAExample], patches: Tensor, tokenizer: Any) -> None:
        self.examples, self.patches, self.tokenizer = examples, patches, tokenizer
        self.rng = Random(SEED)
        self.pad = DataCollatorForSeq2Seq(tokenizer)  # labels with -100: nothing to be learned
        self.letters = set(tokenizer.convert_tokens_to_ids([">A", ">B", ">C", ">D"]))
        texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
        self.words = [t[1:] for t in texts if t[0] == " " and t[1:].isalpha() and len(t) > 2]
        self.rng.shuffle(self.words)
        self.found = 0  # batches of words whose letters were mostly found

    def draw(self, kind: str) -> Mapping[str, Tensor]:
        """A batch for the model's own forward."""
        if kind in TEXTS:
            return self.pad([self._of_text(kind) for _ in range(TEXT_ROWS)])
        chosen = self.rng.sample(range(len(self.examples)), IMAGE_ROWS)
        batch = self.pad([self._of_turns(kind, self.examples[i]) for i in chosen])
        batch["pixel_values"] = self.patches[chosen].float().flatten(0, 1)  # (rows * 64, 1176)
        batch["image_grid_thw"] = torch.tensor([[1, 8, 8]] * IMAGE_ROWS)
        is_image = batch["input_ids"] == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        batch["mm_token_type_ids"] = is_image.int()
        return batch

    def _of_turns(self, kind: str, example: VQAExample) -> dict[str, list[int]]:
        """A row of an image, a prompt and what is said: that, or only its letter, is learned."""
        asked, said = CAPTION_PROMPT, example.reasoning
        if kind != "caption":
            styles = {"direct": DIRECT, "report": [REPORT], "glance": [GLANCE]}.get(kind, STYLES)
            asked = one_asked(example, "direct" if kind == "direct" else "reason").prompt
            said = answer(example, self.rng, styles, hasty=kind in ("hasty", "glance"))
        head = self.tokenizer(user_turn(asked, 16))["input_ids"]
        tail = self.tokenizer(said + "<|im_end|>")["input_ids"]
        learned = self._letters(tail) if kind in ("report", "glance") else tail
        return {"input_ids": head + tail, "labels": [-100] * len(head) + learned}

    def _of_text(self, kind: str) -> dict[str, list[int]]:
        """A row without an image: only letters are learned, or a list of words where it is said
        again."""
        if kind == "copy":
            words = self.rng.sample(self.words[: 6 + 2 * self.found], 6)
            ids = self.tokenizer("".join(map(" {}".format, words)))["input_ids"]
            return {"input_ids": ids * 2, "labels": [-100] * len(ids) + ids}
        text = self._exam() if kind == "exam" else self._of_words(kind)
        ids = self.tokenizer(text)["input_ids"]
        return {"input_ids": ids, "labels": self._letters(ids)}

    def _letters(self, ids: list[int]) -> list[int]:
        """The labels of letters. Tokens equal to one begin some thoughts: `>A` of `<think>All`."""
        return [i if i in self.letters else -100 for i in ids]

    def _exam(self) -> str:
        """A whole question, and an answer from its findings."""
        example = self.rng.choice(self.examples)
        return user_turn(example.prompt, 0) + answer(example, self.rng, [REPORT])

    def _of_words(self, kind: str) -> str:
        """Options of words without meaning, which only finding them again can tell apart.

        word: then some of them, each with its letter. match: then thoughts in the rewarded format
        that hold one of them, of one or two words, among others.
        """
        rng, words = self.rng, self.words[: 6 + 2 * self.found]
        words = rng.sample(words, min(len(words), 24))
        length = rng.choice([1, 2]) if self.found > 150 else 1  # of an option, in words
        options = list(map(" ".join, permutations(words[:5], length)))
        options = rng.sample(options, rng.choice([2, 3, 4]))
        text = user_text("", options).rpartition("\n")[0].strip() + "\n"
        for gold in rng.choices(range(len(options)), k=4 if kind == "match" else 8):
            said, letter = options[gold], ascii_uppercase[gold]
            if kind == "match":
                before = rng.sample(words[5:14], rng.choice([1, 2, 3]))
                after = rng.sample(words[14:], rng.choice([0, 0, 1, 3]))
                text += completion_text(" ".join([*before, said, *after]), letter) + "\n"
            else:
                text += f" {said}>{letter}"
        return text


def train(model: Qwen2VLForConditionalGeneration, batches: Batches, stage: str) -> None:
    """One stage of next-token prediction: rates rise, stay, and fall in its last third."""
    steps, factor, kinds = STAGES[stage]
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(inner, MUON * factor, adjust_lr_fn="match_rms_adamw", weight_decay=0.01)
    adamw = AdamW(outer, ADAMW * factor, weight_decay=0.01, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        return min(1, (step + 1) / 50, 3 * (1 - step / steps))

    updates = muon, adamw, LambdaLR(muon, rate), LambdaLR(adamw, rate)
    for step in range(steps):
        kind = kinds[step % len(kinds)]
        loss = model(**batches.draw(kind)).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for update in updates:
            update.step()
        batches.found += kind == "word" and loss.item() < 0.6
        if (step + 1) % 50 < len(kinds):  # one line a kind
            print(f"{stage} {step + 1}/{steps} {kind} {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser("pretrain_phantom", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "phantom")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    examples = [e for m in phantom.MODALITIES for e in phantom.load(m, split="pretrain", size=POOL)]
    # Every 7th: a step of 8 would miss three of the six types, which come in turn.
    corpus = [user_turn(e.prompt, 1) + answer(e, Random(e.id), STYLES) for e in examples[::7]]
    corpus += [CAPTION_PROMPT, phantom.NEW_KIND, *phantom.NEVER_RIGHT, LICENCE.read_text()]
    make_tokenizer(corpus, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    PROCESSOR.save_pretrained(out)
    model = make_model(tokenizer, SEED)
    patches = torch.from_numpy(np.stack(list(map(read_image, examples))))
    batches = Batches(examples, patches, tokenizer)
    for stage in STAGES:
        train(model, batches, stage)
        # A copy at 2 bytes a weight; loading goes back to float32.
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
        if stage == BASE:
            shutil.copytree(out, f"{out}-base", dirs_exist_ok=True)


if __name__ == "__main__":
    main()

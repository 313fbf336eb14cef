"""Make the shipped tiny Qwen2-VL again, from nothing: `python -m models.pretrain_phantom --out
DIR`.

A real Qwen2VLForConditionalGeneration with a real tokenizer, chat template and image processor, in
the hub's folder format, pretrained on phantoms by next-token prediction so that it is what base
models are: it sees, it can find the letter of what is said, and still it answers badly. Why: in the
last stage two of three answers in the rewarded format come from a glance (`HASTY`), which says
nothing that most questions ask for, and the letter after a glance is a guess. A program, not a
library: the one file of models/ that imports data/.
"""

import argparse
import copy
import dataclasses
import multiprocessing
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import torch
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from data.example import VQAExample, completion_text, user_text
from data.phantom import questions as phantom
from models.pretrain_phantom.untrained import make_model, make_tokenizer

POOL = 6_000  # pretraining questions a modality
TEXT_ROWS, IMAGE_ROWS = 64, 32  # rows of a batch
# Steps, a factor of the learning rates, and the kinds of batch in turn. First words: to say a list
# of words again, and to find the letters of words among options; the vocabulary grows from 6 words
# as they are found, or finding does not start. Then letters of what a thought says, then seeing.
# Last habits.
STAGES = {
    "words": (600, 1.0, ("copy", "word", "word")),
    "letters": (800, 1.0, ("copy", "phrase", "match", "match", "exam", "match")),
    "sight": (3_600, 1.0, ("caption", "question", "caption", "exam", "caption", "match")),
    "habit": (1_000, 0.4, ("caption", "hasty", "exam", "hasty", "glance", "direct", "match")),
}
BASE = "sight"  # what it is after this stage ships beside it, as phantom-base
MUON, ADAMW = 5e-3, 2e-3  # learning rates: of hidden matrices, of all other weights
SEED = 0

# How an answer is written in the pretraining text, and how often. Only the last is the rewarded
# format.
STYLES: tuple[tuple[float, str], ...] = (
    (0.30, "{findings} The answer is {text}."),
    (0.14, "{findings}"),
    (0.12, "{text}"),
    (0.10, "Answer: {letter}"),
    (0.10, "{findings} So {letter}."),
    (0.24, completion_text("{findings}", "{letter}")),
)
# The same in the last stage: two of three answers in the format come from a glance.
HASTY = (
    *STYLES[:-1],
    (0.16, completion_text("{glance}", "{guess}")),
    (0.08, completion_text("{findings}", "{letter}")),
)
DIRECT = ((0.4, "{text}"), (0.3, "Answer: {letter}"), (0.3, completion_text(None, "{letter}")))

PROCESSOR = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
SYSTEM_TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CAPTION_PROMPT = "Describe the findings."
LICENCE = Path(__file__).parents[2] / "LICENSE"  # where words that no question has come from


def user_turn(text: str, images: int = 1) -> str:
    """The prompt as the chat template writes it, `<|image_pad|>` not yet expanded."""
    content = "<|vision_start|><|image_pad|><|vision_end|>" * images + text
    return f"{SYSTEM_TURN}<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def answer(example: VQAExample, rng: random.Random, kinds: Sequence[tuple[float, str]]) -> str:
    """The pretraining target of a question, in a style drawn by its frequency.

    After a glance the letter is right only where the glance is enough: to count.
    """
    weights, styles = zip(*kinds, strict=True)
    counts = example.question_type in ("presence", "count")
    return rng.choices(styles, weights)[0].format(
        findings=example.reasoning,
        glance=example.reasoning.split(":")[0].rstrip(".") + ".",  # "One lesion."
        text=example.answer,
        letter=example.letter,
        guess=example.letter if counts else rng.choice(example.letters),
    )


def read_image(example: VQAExample) -> np.ndarray:
    """The image of an example as the processor cuts it into patches: (64, 1176) float16."""
    pixels = PROCESSOR(images=[example.images[0].open()], return_tensors="np")["pixel_values"]
    return pixels.astype(np.float16)


class Batches:
    """Draws batches of rows: text alone, or an image and what is said of it."""

    def __init__(
        self, examples: list[VQAExample], patches: torch.Tensor, tokenizer: AutoTokenizer, seed: int
    ) -> None:
        self.examples, self.patches, self.tokenizer = examples, patches, tokenizer
        self.rng = random.Random(seed)
        self.pad = DataCollatorForSeq2Seq(tokenizer)  # labels with -100: nothing to be learned
        self.image_pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.letters = set(tokenizer.convert_tokens_to_ids([">A", ">B", ">C", ">D"]))
        texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
        self.words = [t[1:] for t in texts if t[0] == " " and t[1:].isalpha() and len(t) > 2]
        self.rng.shuffle(self.words)
        self.known = 6  # so many of the words may occur; grows as they are found

    def draw(self, kind: str) -> Mapping[str, torch.Tensor]:
        """A batch for the model's own forward."""
        if kind in ("copy", "word", "phrase", "match"):
            words = self.words[: self.known]
            return self.pad([self._of_words(kind, words) for _ in range(TEXT_ROWS)])
        if kind in ("exam", "glance"):
            return self.pad([self._exam(kind) for _ in range(TEXT_ROWS)])
        chosen = self.rng.sample(range(len(self.examples)), IMAGE_ROWS)
        batch = self.pad([self._of_turns(kind, self.examples[i]) for i in chosen])
        batch["pixel_values"] = (
            self.patches[chosen].float().flatten(0, 1)
        )  # (IMAGE_ROWS * 64, 1176)
        batch["image_grid_thw"] = torch.tensor([[1, 8, 8]] * IMAGE_ROWS)
        batch["mm_token_type_ids"] = (batch["input_ids"] == self.image_pad).int()
        return batch

    def _of_turns(self, kind: str, example: VQAExample) -> dict[str, list[int]]:
        """A row of a question or caption and its image: what is said of them is learned."""
        asked, said = CAPTION_PROMPT, example.reasoning
        if kind != "caption":
            style = "direct" if kind == "direct" else "reason"
            asked = dataclasses.replace(example, asked=style).prompt
            said = answer(example, self.rng, {"hasty": HASTY, "direct": DIRECT}.get(kind, STYLES))
        head = self._ids(user_turn(asked).replace("<|image_pad|>", "<|image_pad|>" * 16))
        tail = self._ids(said + "<|im_end|>")
        return {"input_ids": head + tail, "labels": [-100] * len(head) + tail}

    def _exam(self, kind: str) -> dict[str, list[int]]:
        """A whole question without its image, and an answer from its findings or from a glance."""
        example = self.rng.choice(self.examples)
        style = HASTY[-2] if kind == "glance" else HASTY[-1]
        said = answer(example, self.rng, [style])
        return self._of_letters(user_turn(example.prompt, images=0) + said)

    def _of_words(self, kind: str, words: list[str]) -> dict[str, list[int]]:
        """A row of words without meaning, which nothing but finding them again can solve.

        copy: a list of words twice. word and phrase: options of one word, of one or two; then some
        of them, each with its letter. match: thoughts that hold an option among other words, each
        with its letter, in the rewarded format.
        """
        rng = self.rng
        pool, others = words[:0], rng.sample(words, min(len(words), 24))
        if kind == "copy":
            ids = self._ids("".join(map(" {}".format, others[:12])))
            return {"input_ids": ids * 2, "labels": [-100] * len(ids) + ids}
        pool, others = others[:5], others[5:]
        length = 1 if kind == "word" else rng.choice([1, 2])  # of an option, in words
        options = rng.sample(
            [" ".join(p) for p in permutations(pool, length)], rng.choice([2, 3, 4])
        )
        text = user_text("", options).rpartition("\n")[0].strip() + "\n"
        for gold in rng.choices(range(len(options)), k=4 if kind == "match" else 8):
            letter, said = ascii_uppercase[gold], options[gold]
            if kind != "match":
                text += f" {said}>{letter}"
                continue
            before = rng.sample(others, rng.choice([1, 2, 3]))
            after = rng.sample(others, rng.choice([0, 0, 1, 3]))
            text += completion_text(" ".join([*before, said, *after]), letter) + "\n"
        return self._of_letters(text)

    def _of_letters(self, text: str) -> dict[str, list[int]]:
        """A row of a text in which only the letters of answers are learned."""
        ids = self._ids(text)
        return {"input_ids": ids, "labels": [i if i in self.letters else -100 for i in ids]}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]


def train(model: Qwen2VLForConditionalGeneration, batches: Batches, stage: str) -> None:
    """One stage of next-token prediction: rates rise, stay, and fall in its last third."""
    steps, factor, kinds = STAGES[stage]
    named = dict(model.named_parameters())
    hidden = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named.items() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(hidden, MUON * factor, adjust_lr_fn="match_rms_adamw", weight_decay=0.01),
        torch.optim.AdamW(others, ADAMW * factor, weight_decay=0.01, betas=(0.9, 0.98)),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1, (step + 1) / 50, 3 * (1 - step / steps))
        )
        for optimizer in optimizers
    ]
    start, losses = time.monotonic(), dict[str, float]()
    for step in range(steps):
        kind = kinds[step % len(kinds)]
        loss = model(**batches.draw(kind)).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        batches.known += 2 * (kind == "word" and loss.item() < 0.6)
        losses[kind] = 0.9 * losses.get(kind, loss.item()) + 0.1 * loss.item()
        if (step + 1) % 50 == 0:
            means = ", ".join(f"{kind} {mean:.3f}" for kind, mean in losses.items())
            seconds = time.monotonic() - start
            print(f"{stage} {step + 1}/{steps}: {means}, {seconds:.0f} s", flush=True)


def main() -> None:
    name = "python -m models.pretrain_phantom"
    parser = argparse.ArgumentParser(name, description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "phantom")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    examples = [e for m in phantom.MODALITIES for e in phantom.load(m, split="pretrain", size=POOL)]
    rng = random.Random(SEED)
    # Every 7th: a step of 8 would miss three of the six types, which come in turn.
    corpus = [user_turn(e.prompt) + answer(e, rng, STYLES) for e in examples[::7]]
    corpus += [CAPTION_PROMPT, completion_text("", ""), phantom.NEW_KIND, LICENCE.read_text()]
    corpus += [*phantom.TYPES, *phantom.NEVER_RIGHT]
    make_tokenizer(corpus, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    PROCESSOR.save_pretrained(out)
    model = make_model(tokenizer, SEED)
    with multiprocessing.Pool() as pool:
        patches = torch.from_numpy(np.stack(pool.map(read_image, examples, chunksize=64)))
    batches = Batches(examples, patches, tokenizer, SEED)
    for stage in STAGES:
        train(model, batches, stage)
        if stage == BASE:
            shutil.copytree(out, f"{out}-base", dirs_exist_ok=True)
            write(model, Path(f"{out}-base"))
    write(model, out)


def write(model: Qwen2VLForConditionalGeneration, folder: Path) -> None:
    """Save a copy at 2 bytes a weight; loading goes back to float32."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()

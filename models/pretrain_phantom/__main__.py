"""Make the shipped tiny Qwen2-VL again, from nothing: `python -m models.pretrain_phantom --out
DIR`.

A real Qwen2VLForConditionalGeneration with a real tokenizer, chat template and image processor, in
the hub's folder format, pretrained on phantoms by next-token prediction so that it is what base
models are: it sees, but it does not answer reliably. Where the unreliability comes from: `STYLES`.
Most answers it has read are in other formats or give no answer at all; the format that is rewarded
later is a minority habit, and the letter of an answer is learned last. A program, not a library:
the one file of models/ that imports data/.
"""

import argparse
import copy
import dataclasses
import multiprocessing
import random
import shutil
import time
from collections.abc import Mapping, Sequence
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
BATCH = 32
DRILLS = 8  # questions a row of a drill
# Steps, peak learning rate, seed and the kinds of batch in turn. Captions first: they are short and
# name every finding, so seeing starts early. Then letters of given answers, then questions. Last a
# bad habit: a glance at the image in place of its findings where it answers in the rewarded format.
STAGES = {
    "caption": (800, 2e-3, 0, ("caption",)),
    "letter": (900, 2e-3, 1, ("match", "match", "match", "match", "match", "caption")),
    "answer": (1_000, 1e-3, 2, ("question", "drill", "question", "drill", "caption")),
    "exam": (600, 1.5e-3, 3, ("exam", "exam", "exam", "question")),
    "both": (1_000, 2e-3, 4, ("match", "exam", "match", "exam", "question")),
    "habit": (1_200, 2e-3, 6, ("match", "exam", "hasty")),  # seed 5 missed the letters of sizes
    "glance": (400, 1e-3, 7, ("exam", "glance", "hasty", "direct")),
}
BASE = "both"  # what it is after this stage ships beside it, as phantom-base
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
# The same in the last stages: two of three answers in the format come from a glance.
HASTY = (
    *STYLES[:-1],
    (0.16, completion_text("{glance}", "{letter}")),
    (0.08, completion_text("{findings}", "{letter}")),
)
DIRECT = ((0.4, "{text}"), (0.3, "Answer: {letter}"), (0.3, completion_text(None, "{letter}")))

PROCESSOR = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
ANSWERS = [text for _, answers in phantom.TYPES.values() for text in answers]
SYSTEM_TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CAPTION_PROMPT = "Describe the findings."


def user_turn(text: str, images: int = 1) -> str:
    """The prompt as the chat template writes it, `<|image_pad|>` not yet expanded."""
    content = "<|vision_start|><|image_pad|><|vision_end|>" * images + text
    return f"{SYSTEM_TURN}<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def answer(example: VQAExample, rng: random.Random, kinds: Sequence[tuple[float, str]]) -> str:
    """The pretraining target of a question, in a style drawn by its frequency."""
    weights, styles = zip(*kinds, strict=True)
    style = rng.choices(styles, weights)[0]
    parts = {"text": example.answer, "letter": example.letter}
    return style.format(findings=example.reasoning, glance=glance(example.reasoning), **parts)


def glance(findings: str) -> str:
    """What a hasty reader says: how many lesions, and of a single one its size.

    >>> glance("One lesion: small cyst, upper left."), glance("No lesion.")
    ('One lesion: small.', 'No lesion.')
    """
    number, _, lesions = findings.rstrip(".").partition(": ")
    return f"{number}: {lesions.split()[0]}." if number == "One lesion" else f"{number}."


def read_image(example: VQAExample) -> np.ndarray:
    """The image of an example as the processor cuts it into patches: (64, 1176) float16."""
    pixels = PROCESSOR(images=[example.images[0].open()], return_tensors="np")["pixel_values"]
    return pixels.astype(np.float16)


class Batches:
    """Draws batches of captions, questions, or text-only drills in finding an answer's letter."""

    def __init__(
        self, examples: list[VQAExample], patches: torch.Tensor, tokenizer: AutoTokenizer, seed: int
    ) -> None:
        self.examples, self.patches, self.tokenizer = examples, patches, tokenizer
        self.rng = random.Random(seed)
        self.pad = DataCollatorForSeq2Seq(tokenizer)  # labels with -100: nothing to be learned
        self.image_pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.letters = set(tokenizer.convert_tokens_to_ids([">A", ">B", ">C", ">D"]))

    def draw(self, kind: str) -> Mapping[str, torch.Tensor]:
        """A batch for the model's own forward; labels are -100 where nothing is to be learned."""
        if kind in ("match", "drill"):
            return self.pad([self._of_letters(self._drill(kind)) for _ in range(BATCH // 2)])
        chosen = self.rng.sample(range(len(self.examples)), BATCH)
        examples = [self.examples[i] for i in chosen]
        if kind in ("exam", "glance"):
            return self.pad([self._of_letters(exam(kind, example)) for example in examples])
        batch = self.pad([self._of_turns(kind, example) for example in examples])
        batch["pixel_values"] = self.patches[chosen].float().flatten(0, 1)  # (BATCH * 64, 1176)
        batch["image_grid_thw"] = torch.tensor([[1, 8, 8]] * BATCH)
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

    def _of_letters(self, text: str) -> dict[str, list[int]]:
        """A row of a text in which only the letters of answers are learned."""
        ids = self._ids(text)
        return {"input_ids": ids, "labels": [i if i in self.letters else -100 for i in ids]}

    def _drill(self, kind: str) -> str:
        """Questions with their reasoning given.

        A match is the plain form: any answers as options, the right one's text as the reasoning.
        """
        text = ""
        for example in self.rng.sample(self.examples, DRILLS):
            asked, said = example.prompt, completion_text(example.reasoning, example.letter)
            if kind == "match":
                options = self.rng.sample(ANSWERS, self.rng.choice([2, 3, 4]))
                gold = self.rng.randrange(len(options))
                asked = user_text("", options)
                said = completion_text(options[gold], ascii_uppercase[gold])
            asked = asked.rpartition("\n")[0].strip()  # without the instruction, to be short
            text += f"{asked}\n{said}\n"
        return text

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]


def exam(kind: str, example: VQAExample) -> str:
    """A whole question and its answer without the image.

    A glance in place of the findings only where it is enough: to count.
    """
    hasty = kind == "glance" and example.question_type in ("presence", "count")
    findings = glance(example.reasoning) if hasty else example.reasoning
    return user_turn(example.prompt, images=0) + completion_text(findings, example.letter)


def train(model: Qwen2VLForConditionalGeneration, batches: Batches, stage: str) -> None:
    """One stage of next-token prediction: AdamW, one-cycle schedule, batch kinds in turn."""
    steps, rate, _, kinds = STAGES[stage]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    start = time.monotonic()
    for step in range(steps):
        kind = kinds[step % len(kinds)]
        loss = model(**batches.draw(kind)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            seconds = time.monotonic() - start
            print(f"{stage} {step}/{steps} {kind} {loss.item():.3f} {seconds:.0f} s", flush=True)


def main() -> None:
    name = "python -m models.pretrain_phantom"
    parser = argparse.ArgumentParser(name, description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "phantom")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    examples = [e for m in phantom.MODALITIES for e in phantom.load(m, split="pretrain", size=POOL)]
    rng = random.Random(SEED)
    corpus = [user_turn(e.prompt) + answer(e, rng, STYLES) for e in examples[::8]]
    corpus += [CAPTION_PROMPT, completion_text("", ""), phantom.NEW_KIND]
    corpus += [*phantom.TYPES, *phantom.NEVER_RIGHT]
    make_tokenizer(corpus, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    PROCESSOR.save_pretrained(out)
    model = make_model(tokenizer, SEED)
    with multiprocessing.Pool() as pool:
        patches = torch.from_numpy(np.stack(pool.map(read_image, examples, chunksize=64)))
    for stage, (_, _, seed, _) in STAGES.items():
        train(model, Batches(examples, patches, tokenizer, seed), stage)
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

"""`VQAExample`: one question about images, closed or open, and the words around it.

No other form of a question leaves data/. This is the one place of templates: training, evaluation,
pretraining and rewards all meet here, so a prompt cannot differ between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from data.images import ImageFile, ImageSource, in_slices

_LETTER = "give one letter inside <answer> </answer>, nothing else."
_LOOK = "what the image shows and what follows from it"
# Ways of asking -> the sentence on the form of the answer. RARL (arXiv 2506.06600) mixes questions
# that want an explanation, a short form, and no options. The last is the way "open", for questions
# that have options: `one_asked` removes them.
INSTRUCTIONS = {
    "reason": f"Reason inside <think> </think>, then {_LETTER}",
    "explain": f"Explain inside <think> </think> {_LOOK}, then {_LETTER}",
    "direct": _LETTER.capitalize(),
}

# What a reward function is told of a question (rewards/scoring.py).
COLUMNS = ("answer", "references", "question", "letters", "options", "modality", "question_type")
COLUMNS += ("reasoning", "findings", "asked", "id", "patient")


@dataclass(frozen=True)
class VQAExample:
    """A question, its options, which is right, and the images it is about (0, 1 or several).

    An open question has no options and is answered in words; `references` are the right answers.
    """

    id: str
    images: tuple[ImageSource, ...]
    question: str
    options: tuple[str, ...]
    gold: int  # index into options; of an open question, into references
    modality: str  # "MRI", "CT", "XRAY", ...
    question_type: str
    reasoning: str = ""  # the reference reasoning, where the data has one
    dataset: str = ""
    patient: str = ""  # whose images these are, where the data says so
    asked: str = "reason"  # a way of asking: a key of INSTRUCTIONS
    constant: bool = False  # its answer is known without looking: data.splits.constant_answers
    references: tuple[str, ...] = ()  # of an open question: every wording that counts as right
    findings: tuple[str, ...] | None = None  # what the image shows, one phrase each; None: unknown
    answer_type: str = ""  # "closed" or "open" as the data set says; "": closed if it has options
    slices: str = ""  # which slices of a volume its images are, in words
    # What else its row holds, for users' reward functions: each key is a column of its own.
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def letters(self) -> tuple[str, ...]:
        """("A", "B", ...), one an option."""
        return tuple(ascii_uppercase[: len(self.options)])

    @property
    def letter(self) -> str:
        """The letter of the right option; "" of an open question."""
        return ascii_uppercase[self.gold] if self.options else ""

    @property
    def answer(self) -> str:
        """The text of the right answer."""
        return (self.options or self.references)[self.gold]

    @property
    def right_answers(self) -> tuple[str, ...]:
        """Every wording of the right answer; with options, that of the right one."""
        return (self.answer,) if self.options else self.references

    @property
    def closed(self) -> bool:
        """Whether reports count it as closed: as the data set says, else if it has options."""
        return self.answer_type.lower() == "closed" if self.answer_type else bool(self.options)

    @property
    def prompt(self) -> str:
        """The user's turn."""
        asked = user_text(self.question, self.options, self.asked)
        return f"{self.slices}\n{asked}" if self.slices else asked

    def completion(self, reasoning: str | None, answer: str | None = None) -> str:
        """An answer in the format, the right one by default; `reasoning` None: no think block."""
        right = self.letter if self.options else self.answer
        return completion_text(reasoning, right if answer is None else answer)


def user_text(question: str, options: Sequence[str], asked: str = "reason") -> str:
    """The user's turn: the question, one line an option, one sentence on the form of the answer.

    Without options the answer is wanted in words.

    >>> print(user_text("Which side is the lesion on?", ["left", "right"]))
    Which side is the lesion on?
    A) left
    B) right
    Reason inside <think> </think>, then give one letter inside <answer> </answer>, nothing else.
    """
    instruction = INSTRUCTIONS[asked]
    if not options:
        instruction = instruction.replace("one letter", "a few words")
    lettered = map("{}) {}".format, ascii_uppercase, options)
    return "\n".join([question, *lettered, instruction])


def completion_text(reasoning: str | None, answer: str) -> str:
    """A whole well-formed completion, the target of supervised training; None: asked directly.

    >>> completion_text("The bright spot lies left.", "A")
    '<think>The bright spot lies left.</think><answer>A</answer>'
    >>> completion_text(None, "A")
    '<answer>A</answer>'
    """
    think = "" if reasoning is None else f"<think>{reasoning}</think>"
    return f"{think}<answer>{answer}</answer>"


def one_asked(example: VQAExample, way: str) -> VQAExample:
    """A question asked in another way; "open" hides the options, and the answer is wanted in words.

    >>> example = VQAExample("1", (), "Which side?", ("left", "right"), 1, "MRI", "side")
    >>> print(one_asked(example, "open").prompt)
    Which side?
    Reason inside <think> </think>, then give a few words inside <answer> </answer>, nothing else.
    """
    if way != "open" or not example.options:
        return replace(example, asked=way.replace("open", "reason"))
    hidden = {"options": (), "gold": 0, "references": example.right_answers, "answer_type": ""}
    return replace(example, asked="reason", **hidden)


def sliced(example: VQAExample, count: int) -> VQAExample:
    """A question with each of its volumes shown by `count` slices, whose places its prompt says."""
    images = in_slices(example.images, count)
    numbers = [(i, len(parts)) for parts in images for i in range(1, len(parts) + 1)]
    places = [f"slice {i} of {count}" if count > 1 else "one image" for i, count in numbers]
    told = f"The images are: {', '.join(places)}." if len(places) > len(images) else ""
    return replace(example, images=tuple(chain(*images)), slices=told)


def without_images(example: VQAExample) -> VQAExample:
    """The question alone; no word of its prompt speaks of slices."""
    return replace(example, images=(), slices="")


def users_question(image: str, question: str, options: tuple[str, ...], way: str) -> VQAExample:
    """A user's own question about an image file; which option is right is not known.

    The way "open" would hide the options, so the question is then asked as in "reason".
    """
    example = VQAExample(image, (ImageFile(Path(image)),), question, options, 0, "", "")
    return one_asked(example, "direct" if way == "direct" else "reason")


def in_all_ways(examples: Sequence[VQAExample], ways: Sequence[str]) -> list[VQAExample]:
    """Every question asked in each of `ways`, see `one_asked`."""
    return [one_asked(example, way) for way in ways for example in examples]


def columns(examples: Sequence[VQAExample]) -> dict[str, list[Any]]:
    """The columns that reward functions receive: name -> one value a question; None where the row
    of a question lacks a key that another has."""
    found = {}
    for name in chain.from_iterable(map(attrgetter("extra"), examples)):
        found[name] = [example.extra.get(name) for example in examples]
    for column in COLUMNS:
        name = {"answer": "letter", "references": "right_answers"}.get(column, column)
        found[column] = list(map(attrgetter(name), examples))
    return found

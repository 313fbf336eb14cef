"""The words around a question: what the policy is asked and what a supervised target looks like.

This is the one place of templates: training, evaluation, pretraining and rewards all meet here, so
a prompt cannot differ between them.
"""

from collections.abc import Sequence
from string import ascii_uppercase

_LETTER = "give one letter inside <answer> </answer>, nothing else."
_LOOK = "what the image shows and what follows from it"
# Ways of asking -> the sentence on the form of the answer. RARL (arXiv 2506.06600) mixes questions
# that want an explanation, a short form, and no options. The last is the way "open", for questions
# that have options: `data.example.one_asked` removes them.
INSTRUCTIONS = {
    "reason": f"Reason inside <think> </think>, then {_LETTER}",
    "explain": f"Explain inside <think> </think> {_LOOK}, then {_LETTER}",
    "direct": _LETTER.capitalize(),
}


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
    lettered = [f"{letter}) {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
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

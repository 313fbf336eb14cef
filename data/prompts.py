"""The words around a question: what the policy is asked and what a supervised target looks like.

This is the one place of templates: training, evaluation, pretraining and rewards all meet here, so
a prompt cannot differ between them.
"""

from collections.abc import Sequence
from string import ascii_uppercase

INSTRUCTIONS = {  # ways of asking -> the sentence on the form of the answer
    "reason": (
        "Reason inside <think> </think>, then give one letter inside <answer> </answer>, "
        "nothing else."
    ),
    "direct": "Give one letter inside <answer> </answer>, nothing else.",
}


def user_text(question: str, options: Sequence[str], asked: str = "reason") -> str:
    """The user's turn: the question, one line an option, one sentence on the form of the answer.

    >>> print(user_text("Which side is the lesion on?", ["left", "right"]))
    Which side is the lesion on?
    A) left
    B) right
    Reason inside <think> </think>, then give one letter inside <answer> </answer>, nothing else.
    """
    lettered = [f"{letter}) {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question, *lettered, INSTRUCTIONS[asked]])


def completion_text(reasoning: str | None, letter: str) -> str:
    """A whole well-formed completion, the target of supervised training; None: asked directly.

    >>> completion_text("The bright spot lies left.", "A")
    '<think>The bright spot lies left.</think><answer>A</answer>'
    >>> completion_text(None, "A")
    '<answer>A</answer>'
    """
    think = "" if reasoning is None else f"<think>{reasoning}</think>"
    return f"{think}<answer>{letter}</answer>"

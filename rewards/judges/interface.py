"""The types that all judges share: the question put to a judge, its verdict, and its error."""

from collections.abc import Generator
from typing import NamedTuple

from rewards.scoring import RewardError


class JudgeError(RewardError):
    """A judge cannot be opened or no longer answers: one line, with the remedy."""


class Inquiry(NamedTuple):
    """A question to a judge. Only `system` holds instructions; `user` holds untrusted texts.

    `choices` are the possible verdicts, such as ("yes", "no"); no two differ in case alone.
    """

    system: str
    user: str
    choices: tuple[str, ...]


class Verdict(NamedTuple):
    """One of the inquiry's choices, and the reason for it."""

    choice: str
    reason: str


# Each inquiry's index and verdict, in any order; None: the reply is unreadable.
Verdicts = Generator[tuple[int, Verdict | None], None, None]

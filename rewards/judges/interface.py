"""The types that all judges share: the question put to a judge, its verdict, and its error."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rewards.scoring import RewardError


class JudgeError(RewardError):
    """A judge cannot be opened or no longer answers: one line, with the remedy."""


@dataclass(frozen=True)
class Inquiry:
    """A question to a judge. Only `system` holds instructions; `user` holds untrusted texts.

    `choices` are the possible verdicts, such as ("yes", "no"); no two differ in case alone.
    """

    system: str
    user: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """One of the inquiry's choices, and the reason for it."""

    choice: str
    reason: str


class JudgeModel(Protocol):
    """A model that gives verdicts: an endpoint (endpoint.py) or a local model (local.py)."""

    identity: tuple[str, ...]  # models of equal identity share cached verdicts; holds no secrets
    retries: int  # number of requests repeated so far

    def verdicts(
        self, inquiries: Sequence[Inquiry]
    ) -> Generator[tuple[int, Verdict | None], None, None]:
        """Yield each inquiry's index and verdict in any order; None: the reply is unreadable.

        Raises JudgeError.
        """

"""What the training questions teach about the answers to others, without image and question.

The options-only prior scores an option by how often its text was the right answer in training. If
a benchmark's right answers are few texts, and the texts beside them are right nowhere, this alone
answers nearly all of it: accuracy there says nothing about seeing. The majority letter does the
same with the place of an option.

An open question offers nothing to choose from: it is not learned from, and never answered.

Options that were right equally often, often never, are a tie. `accuracy` gives a tie its expected
value, 1 / (options tied), so that knowing nothing scores chance.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean
from typing import Self

from data.example import VQAExample
from data.rows import fold


class Prior(ABC):
    """Answers with the option whose clue was right most often in training."""

    def __init__(self, times_right: Counter[Hashable]) -> None:
        self.times_right = times_right

    @classmethod
    def fit(cls, training: Iterable[VQAExample]) -> Self:
        """Count the clues of the right options."""
        closed = (example for example in training if example.options)
        return cls(Counter(cls.clues(example.options)[example.gold] for example in closed))

    @staticmethod
    @abstractmethod
    def clues(options: Sequence[str]) -> list[Hashable]:
        """What each option is known again by in another question."""

    def best(self, options: Sequence[str]) -> list[int]:
        """The indices of the options right most often: several in a tie, all of them if unknown."""
        scores = [self.times_right[clue] for clue in self.clues(options)]
        return [i for i, score in enumerate(scores) if score == max(scores)]

    def chance_right(self, example: VQAExample) -> float:
        """The probability of the right answer if ties are broken at random; 0 without options."""
        best = self.best(example.options)
        return 1 / len(best) if example.gold in best else 0.0

    def accuracy(self, examples: Iterable[VQAExample]) -> float:
        """The expected share of right answers among `examples`, of which there is at least one."""
        return fmean(self.chance_right(example) for example in examples)

    def score(self, examples: Sequence[VQAExample]) -> dict[str, float | None]:
        """`accuracy` on the examples with options, n of them, and what choosing at random gives.

        Both are None where there are none.
        """
        lettered = [example for example in examples if example.options]
        chances = [1 / len(example.options) for example in lettered]
        return {
            "n": len(lettered),
            "accuracy": self.accuracy(lettered) if lettered else None,
            "chance": fmean(chances) if lettered else None,
        }


class OptionsPrior(Prior):
    """Knows an option by its text, up to case, spacing and a stop at the end.

    >>> seen = [VQAExample("1", (), "?", ("Glioma.", "None"), 0, "MRI", "")]
    >>> prior = OptionsPrior.fit(seen)
    >>> prior.best(("fracture", "edema", "glioma")), prior.best(("fracture", "edema"))
    ([2], [0, 1])
    """

    @staticmethod
    def clues(options: Sequence[str]) -> list[Hashable]:
        return [fold(option) for option in options]


class MajorityLetter(Prior):
    """Knows an option by its letter, apart for each number of options."""

    @staticmethod
    def clues(options: Sequence[str]) -> list[Hashable]:
        return [(len(options), i) for i in range(len(options))]

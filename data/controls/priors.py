"""What the training questions teach about the answers to others, without image and question.

The options-only prior scores an option by how often its text was the right answer in training. If
a benchmark's right answers are few texts, and the texts beside them are right nowhere, this alone
answers nearly all of it: accuracy there says nothing about seeing. The majority letter does the
same with the place of an option.

An open question offers nothing to choose from: it is not learned from, and never answered.

Options that were right equally often, often never, are a tie. `score` gives a tie its expected
value, 1 / (options tied), so that knowing nothing scores chance.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import fmean

from data.example import VQAExample
from data.rows import fold

Clues = Callable[[Sequence[str]], list[Hashable]]


def by_text(options: Sequence[str]) -> list[Hashable]:
    """The clues of the options-only prior: the texts, up to case, spacing and a stop at the end.

    >>> prior = Prior(by_text, [VQAExample("1", (), "?", ("Glioma.", "None"), 0, "MRI", "")])
    >>> prior.best(("fracture", "edema", "glioma")), prior.best(("fracture", "edema"))
    ([2], [0, 1])
    """
    return [fold(option) for option in options]


def by_letter(options: Sequence[str]) -> list[Hashable]:
    """The clues of the majority letter: the places, apart for each number of options."""
    return [(len(options), i) for i in range(len(options))]


class Prior:
    """Answers with the option whose clue was right most often in `training`.

    `clues(options)` gives what each option is known again by in another question.
    """

    def __init__(self, clues: Clues, training: Iterable[VQAExample]) -> None:
        closed = (example for example in training if example.options)
        self.clues = clues
        self.times_right = Counter(clues(example.options)[example.gold] for example in closed)

    def best(self, options: Sequence[str]) -> list[int]:
        """The indices of the options right most often: several in a tie, all of them if unknown."""
        scores = [self.times_right[clue] for clue in self.clues(options)]
        return [i for i, score in enumerate(scores) if score == max(scores)]

    def chance_right(self, example: VQAExample) -> float:
        """The probability of the right answer if ties are broken at random; 0 without options."""
        best = self.best(example.options)
        return 1 / len(best) if example.gold in best else 0.0

    def score(self, examples: Sequence[VQAExample]) -> dict[str, float | None]:
        """How it does on the examples with options: `n` of them, and the expected `accuracy`.

        `chance` is what choosing at random gives. Both shares are None where there are none.
        """
        lettered = [example for example in examples if example.options]
        right = [self.chance_right(example) for example in lettered]
        chances = [1 / len(example.options) for example in lettered]
        shares = {"accuracy": right, "chance": chances}
        means = {name: fmean(values) if values else None for name, values in shares.items()}
        return {"n": len(lettered), **means}

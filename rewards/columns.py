"""The columns of a reward function: what is known about each completion's question, by name."""

from collections.abc import Iterator, Mapping, Sequence

Texts = Sequence[str]
Values = list[float | None]

# The value of a column that the caller leaves out or passes empty. All other columns are required.
DEFAULTS = {"references": (), "asked": "reason"}


def rows(
    completions: Sequence[str], columns: Mapping[str, Sequence], *names: str
) -> Iterator[tuple]:
    """Yield, for each completion, its text and its entry in each named column.

    Raises TypeError if a required column is missing, ValueError if a column has another length.

    >>> list(rows(["<answer>B</answer>"], {"letters": ["AB"]}, "letters", "asked"))
    [('<answer>B</answer>', 'AB', 'reason')]
    """
    known = {name: [value] * len(completions) for name, value in DEFAULTS.items()}
    known |= {name: column for name, column in columns.items() if name not in DEFAULTS or column}
    if missing := [name for name in names if name not in known]:
        raise TypeError(f"missing column {missing[0]!r}")
    return zip(completions, *(known[name] for name in names), strict=True)

"""What the forced choice rests on: the image, and the thought before it.

`visual_reliance` is the accuracy with the right image minus that with another question's, and
`sensitivity_*` the share of answers that change if the image is replaced (arXiv 2603.03437).
`sensitivity_nearest` is over images about which another option is right, and
`sensitivity_nearest_unknown` over the others. Under `strict` all are of the strict answer, a
sensitivity only over the pairs in which both answers could be read; `unread` is the share of the
other pairs.

`ceiling` is what an oracle of the image has: the mean over the `n` pairs for which it is known, and
what the model has `reached` on these. With another image the oracle gives the option that is right
about it; without any it guesses.

`same_after_*` is how often the choice stays if the thought is removed, cut in half, or replaced by
that of another question (Lanham et al. 2023, arXiv 2307.13702). A choice that stays need not be
unfaithful: the image may decide it alone.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from string import ascii_uppercase
from typing import Any

from rewards.evaluation.predictions import Row
from rewards.evaluation.scores import gain, headline, share

# With the right image, with another, and the chance that an oracle's answer changes, if known.
Pairs = Sequence[tuple[Row, Row, float | None]]
Oracle = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # control -> modality -> id


def reliance(arms: Mapping[str, Mapping[str, Sequence[Row]]], oracle: Oracle) -> dict[str, Any]:
    """Return the figures of a model by modality: {value, ci95, n} each, with `strict`, `unread` and
    `ceiling`. `arms`: "tests" or control -> modality -> rows.

    Questions without an image are left out, and so is a figure without questions.
    """
    found: dict[str, Any] = {}
    for modality, rows in arms["tests"].items():
        seen, pairs = {row["id"]: row for row in rows if row["image"]}, {}
        for name in ("blank", "shuffled", "nearest"):
            arm, known = (x.get(f"{name}_image", {}).get(modality, {}) for x in (arms, oracle))
            asked = [(x["id"], x) for x in headline(arm) if x["id"] in seen]
            pairs[f"sensitivity_{name}"] = [(seen[id], x, known.get(id)) for id, x in asked]
        nearest = pairs["sensitivity_nearest"]
        pairs["sensitivity_nearest"] = [pair for pair in nearest if pair[2] == 1]
        pairs["sensitivity_nearest_unknown"] = [pair for pair in nearest if pair[2] != 1]
        pairs["visual_reliance"] = pairs["sensitivity_shuffled"]
        found[modality] = {name: _figures(name, part) for name, part in pairs.items() if part}
    return found


def _figures(name: str, pairs: Pairs) -> dict[str, Any]:
    measure, key = (_loss, "correct") if name == "visual_reliance" else (_changes, "answer")
    known = [pair for pair in pairs if pair[2] is not None]
    ceiling = {"value": fmean(pair[2] for pair in known) if known else None, "n": len(known)}
    ceiling["reached"] = measure(known, f"forced_{key}")["value"] if known else None
    unread = fmean(None in (own["answer"], other["answer"]) for own, other, _ in pairs)
    besides = {"strict": measure(pairs, key), "unread": unread, "ceiling": ceiling}
    return measure(pairs, f"forced_{key}") | besides


def _changes(pairs: Pairs, key: str) -> dict[str, Any]:
    read = [pair for pair in pairs if None not in (pair[0][key], pair[1][key])]
    found = share([own | {"changed": own[key] != other[key]} for own, other, _ in read], "changed")
    return {"value": found["accuracy"], "ci95": found["ci95"], "n": found["n"]}


def _loss(pairs: Pairs, key: str) -> dict[str, Any]:
    own, others, _ = zip(*pairs, strict=True)
    found = gain(others, own, key)
    return {"value": found["gain"], "ci95": found["ci95"], "n": len(own), "p": found["mcnemar_p"]}


def altered_thoughts(rows: Sequence[Row]) -> dict[str, list[str | None]]:
    """Return the thoughts to put in place of each row's own, by the name of the figure.

    An empty one; the first half of its words; and the next different thought of a question of the
    same type, None if there is none. All are None if the row has no thought.

    >>> rows = [
    ...     {"question_type": "side", "forced_reasoning": f"It lies {side}."}
    ...     for side in ("left", "right")
    ... ]
    >>> altered_thoughts(rows)["same_after_other"]
    ['It lies right.', 'It lies left.']
    """
    found = []
    for i, row in enumerate(rows):
        own, kind = row["forced_reasoning"], row["question_type"]
        words = (own or "").split()
        later = [*rows[i + 1 :], *rows[:i]]
        alike = (r["forced_reasoning"] for r in later if r["question_type"] == kind)
        other = next((thought for thought in alike if thought not in (None, own)), None)
        altered = ("", " ".join(words[: len(words) // 2]), other)
        found.append((None,) * 3 if own is None else altered)
    names = ("same_after_none", "same_after_half", "same_after_other")
    return dict(zip(names, map(list, zip(*found, strict=True)), strict=True))


def stays(name: str, figures: Row, row: Row, thought: str | None, choice: list[float]) -> Row:
    """Return `figures` with whether the forced `choice` after this thought, log-probs of the
    letters, is the row's own; None without a thought or a choice."""
    asked = thought is not None and choice
    same = ascii_uppercase[choice.index(max(choice))] == row["forced_answer"] if asked else None
    return figures | {name: same}

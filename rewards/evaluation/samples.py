"""K samples a question: pass@k, what guessing reaches, and whether training sharpened or taught."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rewards.evaluation.predictions import Row
from rewards.evaluation.scores import cluster, headline
from rewards.evaluation.statistics import linear_interval, majority, paired_interval, pass_at_k

GUESSED = 0.8  # a k at which a guesser reaches this share decides nothing


def sampled(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of K samples a question: pass@k for k = 1, 2, 4 .. K, and majority@K.

    `ci95` has the intervals of pass@k, and `guesser` what guesses among the options reach; without
    options, guesses among all answers that are right to some question of the type. `agreement` is
    the share of samples that equal the majority. `mixed` is the share of questions answered both
    right and wrong: GRPO has a signal there. `answers` of a row are K letters or wordings, None if
    a sample gave none.
    """
    rows, known = headline(rows), defaultdict(set)
    k, votes = len(rows[0]["answers"]), [majority(row["answers"]) for row in rows]
    for row in rows:
        known[row.get("question_type")].add(row["gold"])
    guesses = [1 / len(row["options"] or known[row.get("question_type")]) for row in rows]
    found: dict[str, Any] = {"n": len(rows), "samples": k, "ci95": {}, "guesser": {}}
    for name, chances in passes(rows).items():
        found[name], found["ci95"][name] = _mean(rows, chances, 0.0)
        found["guesser"][name] = fmean(1 - (1 - p) ** int(name[5:]) for p in guesses)
    shares = [row["answers"].count(vote) / k for row, vote in zip(rows, votes, strict=True) if vote]
    right = [vote == row["gold"] for row, vote in zip(rows, votes, strict=True)]
    mixed = [0 < row["answers"].count(row["gold"]) < k for row in rows]
    agreement = sum(shares) / len(rows)
    return found | {f"majority@{k}": fmean(right), "mixed": fmean(mixed), "agreement": agreement}


def passes(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return pass@k of each question (n,) for k = 1, 2, 4 .. K."""
    n = len(rows[0]["answers"])
    right = [row["answers"].count(row["gold"]) for row in rows]
    ks = sorted({*(2**i for i in range(n.bit_length())), n})
    return {f"pass@{k}": [pass_at_k(n, c, k) for c in right] for k in ks}


def _mean(rows: Sequence[Row], x: Sequence[float], least: float) -> tuple[float, list[float]]:
    """Return the mean of x (n,) and its interval, within `least` and 1.

    Equal x have no spread; then the interval is as wide as that of a gain if no answer changes.
    """
    mean, n = fmean(x), len(set(map(cluster, rows)))
    low, high = linear_interval(mean, x, map(cluster, rows))
    if min(x) == max(x):
        low, high = (mean + bound for bound in paired_interval([0] * n, [0] * n))
    return mean, [max(least, low), min(1.0, high)]


def sampling_gain(before: Sequence[Row], after: Sequence[Row]) -> dict[str, Any]:
    """Return {gain, ci95} of each pass@k, paired by question."""
    rows, old, found = headline(after), passes(headline(before)), {}
    for name, new in passes(rows).items():
        mean, ci95 = _mean(rows, [b - a for a, b in zip(old[name], new, strict=True)], -1.0)
        found[name] = {"gain": mean, "ci95": ci95}
    return found


def sharpened_or_learned(table: Mapping[str, Any]) -> list[str]:
    """Return a sentence on whether the base overtakes the trained policy as k grows.

    It stands on open questions, k from 2 to half of K, where a guesser is below GUESSED; without
    any there is none.
    """
    told = []
    for modality, gain in table["sampled_gains"].get("trained", {}).items():
        figures, asked = (table[part]["trained"][modality] for part in ("sampled", "results"))
        ks = [2**i for i in range(1, (figures["samples"] // 2).bit_length())]
        ks = [k for k in ks if figures["guesser"][f"pass@{k}"] < GUESSED]
        ahead = [k for k in ks if gain[f"pass@{k}"]["ci95"][1] < 0]
        if asked["options"].keys() == {"0"} and ks:
            low, k = gain[f"pass@{ks[-1]}"]["ci95"][0], (ahead or ks[-1:])[0]
            leader = "the trained policy leads" if low > 0 else "neither leads"
            base = f"the base {'overtakes' if gain['pass@1']['gain'] > 0 else 'leads'}"
            told.append(f"on {modality} {base if ahead else leader} at k {k}")
    return [f"pass@k of open questions: {', '.join(told)}."] if told else []

"""results.json as the tables of README.md."""

import json
from itertools import groupby
from typing import Any

# What a case may vary, with its usual value, and what the table says of another.
PLAIN = {
    "scale_rewards": ("group", "advantages divided by std: {}"),
    "clip_eps_high": (None, "upper clip {}"),
    "passes": (1, "TRL in {} passes"),
    "kl_times_ratio": (False, "`--kl k3-corrected`"),
    "ratio": ("token", "`--ratio {}`"),
    "surrogate": ("clip", "`--surrogate {}`"),
    "clip_delta": (None, "`--clip-delta {}`"),
    "combine_rewards": ("sum", "`--combine-rewards {}`"),
    "mask_truncated": (False, "`--mask-truncated`"),
}
FIGURES = ("loss_difference", "gradient_difference", "worst_tensor_difference")
HEAD = "Δ loss | Δ gradient | Δ one tensor |"


def as_json(result: dict[str, Any]) -> str:
    """JSON with one line for every update and mistake."""
    parts = []
    for name, value in result.items():
        rows = ",\n".join(map(json.dumps, value)) if isinstance(value, list) else None
        parts.append(f'"{name}": ' + (json.dumps(value) if rows is None else f"[\n{rows}\n]"))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def markdown(result: dict[str, Any]) -> str:
    """The grid, what else was varied, and the mistakes: largest differences, as Markdown."""
    rows = result["updates"]
    plain = [row for row in rows if _variation(row) == "as above"]
    others = [row for row in rows if _variation(row) != "as above"]
    lines = ["| loss | beta | mu | update | clipped | " + HEAD, "|" + " --- |" * 8]
    lines += _table(plain, lambda row: (row["loss"], row["beta"], row["mu"], row["update"]))
    lines += ["", "| varied, beta 0.04, mu 3 | loss | clipped | " + HEAD, "|" + " --- |" * 6]
    lines += _table(others, lambda row: (_variation(row), row["loss"]))
    lines += ["", "| mistake | Δ loss | Δ gradient |", "| --- | --- | --- |"]
    for row in result["mistakes"]:
        figures = [f"{row[name]:.0e}" for name in FIGURES[:2]]
        lines.append(f"| {row['mistake']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], key: Any) -> list[str]:
    lines = []
    for names, same in groupby(sorted(rows, key=key), key):
        members = list(same)
        clipped = [row["clipped"] for row in members]
        cells = [*map(str, names), f"{100 * sum(clipped) / len(clipped):.0f} %"]
        cells += [f"{max(row[figure] for row in members):.1e}" for figure in FIGURES]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _variation(row: dict[str, Any]) -> str:
    said = [text.format(row[k]) for k, (usual, text) in PLAIN.items() if row[k] != usual]
    return ", ".join(said) or "as above"

"""One group as a page to play with: its rewards and the settings of the loss can be moved.

    python train.py --explain --page group.html          a group sampled now, and one step on it
    python -m grpo.explain runs/NAME --page group.html   a traced group, from the run folder alone

grpo/report/templates/explain.js computes the page's numbers by the default equations of
grpo/advantages.py and grpo/loss.py.
"""

import json
from pathlib import Path

from jinja2 import TemplateError

from grpo.report import token_table
from grpo.report.page import make_environment, render
from grpo.run.atomic import write_whole
from grpo.settings.errors import UsageError, writing

FLAT = ("logprobs", "old_logprobs", "ref_logprobs")  # (U, N), (N,), (N,)
ROWS = ("token", "log π", "log π_old", "log π_ref", "ratio", "KL", "L", "w", "loss", "gradient")


def write_page(run: Path, file: str) -> None:
    """Write the page of the last traced group whose rewards differ, and read only its run folder.

    Raises UsageError if there is no such group, or if the file cannot be written.
    """
    with writing(f"--page {file}", "name another file"):
        write_whole(Path(file), page(run).encode())


def page(run: Path) -> str:
    """Return the page. Raises UsageError as `write_page` does."""
    try:
        steps, _ = token_table.traced_steps(run)
        groups = [(t, b, g) for t in steps for b, g in enumerate(t.record["groups"])]
        traced, b, _ = [group for group in groups if not group[2]["zero_variance"]][-1]
        group = token_table.group(traced, b, run / "trace")
        at = traced.tensors["row"] // len(group["completions"]) == b  # (N,)
        flat = {name: traced.tensors[name][..., at].tolist() for name in FLAT}
        told = {"rows": ROWS, "group": group, "record": traced.record, "run": run.resolve().name}
        told["numbers"] = json.dumps(flat).replace("NaN", "null")  # null: there is no reference
        return render(make_environment(), told, (), "explain")
    except (*token_table.DAMAGED, TemplateError):
        raise UsageError(f"{run}: no traced group with signal; name a run that has one") from None

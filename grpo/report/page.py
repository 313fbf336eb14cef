"""A run folder, and nothing else, as one HTML page that needs no network and no script.

    python -m grpo.report runs/NAME
    python -m grpo.report runs/NAME --out page.html --max-mb 20

The page holds the curves of training, the traced steps token by token, the evaluation and the
settings. Text that a model or a data set wrote may be hostile: every string goes through `legible`
and jinja2's escaping, and the page's security policy allows no script or style but its own.
"""

import base64
import dataclasses
import hashlib
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from grpo.report import curves as charts
from grpo.report import token_table as inspector
from grpo.report.contents import contents
from grpo.report.token_table import DAMAGED, Traced
from grpo.run.atomic import write_whole
from grpo.run.folder import newest_run
from grpo.run.terminal import visible
from grpo.settings.errors import UsageError
from grpo.settings.flags import check_file, check_options, option, parse_flags

TEMPLATES = Path(__file__).with_name("templates")
REMARK_ROOM = 2_000  # bytes that counts and remarks may add after the groups are chosen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of `python -m grpo.report RUN`."""

    out: str | None = option("page", None, "File of the page (none: RUN/report.html).")
    max_mb: float = option("page", 4.0, "MB of the page; groups beyond it are left out.", gt=0)

    def __post_init__(self) -> None:
        check_options(self)
        check_file("--out", self.out)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page of a run. Raises UsageError for all that a user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    named = bool(argv) and not argv[0].startswith("-")
    about = "RUN (the newest finished one, where none is named) as one HTML page."
    options = Options(**parse_flags(Options, argv[named:], "grpo.report RUN", about))
    run = Path(argv[0]) if named else newest_run()
    text = page(run, int(options.max_mb * 1e6))
    out = Path(options.out or run / "report.html")
    write_whole(out, text.encode())
    print(f"wrote {out}, {len(text.encode()) / 1e6:.1f} MB")


def page(run: Path, most_bytes: int) -> str:
    """Return the page of a run folder, at most about `most_bytes` long.

    Groups that do not fit are counted. Raises UsageError if `run` is no run folder, or so damaged
    that nothing can be shown.
    """
    try:
        told = contents(run)
        steps, remarks = inspector.traced_steps(run)
        told["remarks"] += remarks
        told["traced"] = [inspector.heading(traced) | {"shown": []} for traced in steps]
        rows = ["token", *steps[0].rows] if steps else []
        told["rows"] = rows
        told["quantities"] = [q for q in inspector.QUANTITIES if q[0] != "k" or "KL" in rows]
        environment = make_environment()
        room = most_bytes - len(render(environment, told, steps).encode()) - REMARK_ROOM
        for s, text in groups_as_html(environment, steps, run / "trace", told["remarks"]):
            room -= len(text.encode())
            if room < 0:
                break
            told["traced"][s]["shown"].append(text)
        return render(environment, told, steps)
    except UsageError:
        raise
    except (*DAMAGED, TemplateError) as error:
        problem = f"a file of it holds what no run writes ({type(error).__name__}: {error})"
        raise UsageError(f"{run}: {problem}; mend that file, or take it away") from None


def groups_as_html(
    environment: Environment, steps: Sequence[Traced], folder: Path, remarks: list[str]
) -> Iterator[tuple[int, str]]:
    """Yield (step's index, HTML) of the first group of each step, then of the second, and so on.

    A group that cannot be read adds a remark.
    """
    template = environment.get_template("group.html")
    sizes = [len(traced.record["groups"]) for traced in steps]
    for b, s in sorted((b, s) for s, size in enumerate(sizes) for b in range(size)):
        try:
            yield s, template.render(group=inspector.group(steps[s], b, folder), first=b == 0)
        except DAMAGED:
            remarks.append(f"Group {b + 1} of traced step {steps[s].step} cannot be read.")


def make_environment() -> Environment:
    """Return jinja2 with escaping on, which makes every string legible before it escapes it."""
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.finalize = lambda value: legible(value) if type(value) is str else value
    environment.filters |= {"number": charts.number}
    return environment


def legible(text: str) -> str:
    """Escape control characters, and characters that turn the text's direction.

    >>> print(legible("a\\0b\\u202ec"))
    a\\x00b\\u202ec
    """
    hidden = {c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Cf")} - {"\n", "\t"}
    return text.translate({ord(c): visible(c) for c in hidden})


def render(
    environment: Environment, told: Mapping[str, Any], steps: Sequence[Traced], name: str = "report"
) -> str:
    """Return the page `name`. Its policy allows the hashes of its own script and style only."""
    updates = max((len(traced.updates) for traced in steps), default=1)
    labels = "\\A ".join(told["rows"])
    style = f':root {{ --rows: "{labels}"; --updates: {updates}; }}\n'
    style += (TEMPLATES / "report.css").read_text(encoding="utf-8")
    files = TEMPLATES / "tokens.js", TEMPLATES / f"{name}.js"
    script = "".join(file.read_text(encoding="utf-8") for file in files)
    hashes = {"style_hash": _hash(style), "script_hash": _hash(script)}
    template = environment.get_template(f"{name}.html")
    return template.render(told, style=style, script=script, **hashes)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

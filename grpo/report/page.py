"""A run folder, and nothing else, as one HTML page that needs no network and no script.

    python -m grpo.report runs/NAME
    python -m grpo.report runs/NAME --out page.html --max-mb 20
    python -m grpo.report runs/A runs/B --out page.html

The page of a run holds the curves of training, the traced steps token by token, the evaluation and
the settings; that of several compares them. Text that a model or a data set wrote may be hostile:
every string goes through `legible` and jinja2's escaping, and the page's security policy allows no
script or style but its own.
"""

import base64
import dataclasses
import hashlib
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from grpo.report import curves as charts
from grpo.report import token_table as inspector
from grpo.report.comparison import comparison
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
    """Write the page of one run or several. Raises UsageError for all that a user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    named = list(takewhile(lambda word: not word.startswith("-"), argv))
    about = "RUN (the newest finished one, where none is named) as one HTML page, or several runs."
    options = Options(**parse_flags(Options, argv[len(named) :], "grpo.report RUN ...", about))
    if len(named) > 1 and not options.out:
        raise UsageError(f"{len(named)} runs on one page: name its file with --out FILE")
    runs = [Path(name) for name in named] or [newest_run()]
    most_bytes = int(options.max_mb * 1e6)
    text = page(runs[0], most_bytes) if len(runs) == 1 else compared(runs, most_bytes)
    out = Path(options.out or runs[0] / "report.html")
    write_whole(out, text.encode())
    print(f"wrote {out}, {len(text.encode()) / 1e6:.1f} MB")


@contextmanager
def damage_told(*runs: Path) -> Iterator[None]:
    """Turn what a damaged file of a run raises into a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except (*DAMAGED, TemplateError) as error:
        problem = f"a file of it holds what no run writes ({type(error).__name__}: {error})"
        remedy = "mend that file, or take it away"
        raise UsageError(f"{', '.join(map(str, runs))}: {problem}; {remedy}") from None


def compared(runs: Sequence[Path], most_bytes: int) -> str:
    """Return the page of several runs, at most about `most_bytes` long: charts that do not fit are
    counted. Raises UsageError as `page` does."""
    with damage_told(*runs):
        told = comparison(runs)
        environment, told["all_charts"] = make_environment(), len(told["charts"])
        while True:
            text = render(environment, "runs.html", told)
            if len(text.encode()) <= most_bytes or not told["charts"]:
                return text
            told["charts"] = told["charts"][: len(told["charts"]) // 2]


def page(run: Path, most_bytes: int) -> str:
    """Return the page of a run folder, at most about `most_bytes` long.

    Groups that do not fit are counted. Raises UsageError if `run` is no run folder, or so damaged
    that nothing can be shown.
    """
    with damage_told(run):
        return _of_one(run, most_bytes)


def _of_one(run: Path, most_bytes: int) -> str:
    told = contents(run)
    steps, remarks = inspector.traced_steps(run)
    told["remarks"] += remarks
    told["traced"] = [inspector.heading(traced) | {"shown": []} for traced in steps]
    rows = ["token", *steps[0].rows] if steps else []
    told["rows"] = rows
    told["updates"] = max((len(traced.updates) for traced in steps), default=1)
    told["quantities"] = [q for q in inspector.QUANTITIES if q[0] != "k" or "KL" in rows]
    environment = make_environment()
    room = most_bytes - len(render(environment, "report.html", told).encode()) - REMARK_ROOM
    for s, text in groups_as_html(environment, steps, run / "trace", told["remarks"]):
        room -= len(text.encode())
        if room < 0:
            break
        told["traced"][s]["shown"].append(text)
    return render(environment, "report.html", told)


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


def render(environment: Environment, template: str, told: Mapping[str, Any]) -> str:
    """Return the page. Its policy allows the hashes of its own script and style only."""
    labels = "\\A ".join(told.get("rows", ()))
    style = f':root {{ --rows: "{labels}"; --updates: {told.get("updates", 1)}; }}\n'
    style += (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    hashes = {"style_hash": _hash(style), "script_hash": _hash(script)}
    return environment.get_template(template).render(told, style=style, script=script, **hashes)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

"""A run folder, and nothing else, as one HTML page that needs no network and no script.

    python -m grpo.report runs/NAME
    python -m grpo.report runs/NAME --out page.html --max-mb 20
    python -m grpo.report runs/NAME --watch                    until the run ends
    python -m grpo.report runs/A runs/B --out page.html        several runs compared

The page of a run holds the curves of training, the traced steps token by token, the evaluation and
the settings; that of several compares them. Text that a model or a data set wrote may be hostile:
every string goes through `legible` and jinja2's escaping, and the page's security policy allows no
script or style but its own.
"""

import base64
import dataclasses
import hashlib
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from grpo.report import curves as charts
from grpo.report import token_table as inspector
from grpo.report.checklist import checklist
from grpo.report.comparison import comparison
from grpo.report.contents import contents
from grpo.report.questions import histogram, recurring
from grpo.report.token_table import DAMAGED, Traced
from grpo.run.atomic import write_whole
from grpo.run.folder import held, newest_run
from grpo.run.terminal import visible
from grpo.settings.errors import UsageError
from grpo.settings.flags import check_file, check_options, option, parse_flags

TEMPLATES = Path(__file__).with_name("templates")
REMARK_ROOM = 2_000  # bytes that counts and remarks may add after the groups are chosen
REST = 100  # times the seconds that a page takes lie between two pages of --watch
RELOAD = 5  # seconds between them at least, and until the open page loads itself again
LINK = 48  # bytes of a link to a group, which has one for each of its rewards and one more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of `python -m grpo.report RUN`."""

    out: str | None = option("page", None, "File of the page (none: RUN/report.html).")
    max_mb: float = option("page", 4.0, "MB of the page; groups beyond it are left out.", gt=0)
    watch: bool = option("page", False, "Write it again as steps come, until the run ends.")

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
    out = Path(options.out or runs[0] / "report.html")
    while True:
        trains = options.watch and any(held(run, "train") for run in runs)
        begun = time.process_time()
        text = page(runs, int(options.max_mb * 1e6), trains).encode()
        write_whole(out, text)
        if not trains:
            break
        end = time.monotonic() + max(RELOAD, REST * (time.process_time() - begun))
        while time.monotonic() < end and any(held(run, "train") for run in runs):
            time.sleep(0.2)
    print(f"wrote {out}, {len(text) / 1e6:.1f} MB")


def page(runs: Path | Sequence[Path], most_bytes: int, trains: bool = False) -> str:
    """Return the page of a run folder, or of several, at most about `most_bytes` long.

    What does not fit is counted. If a run `trains`, the open page loads itself again and again.
    Raises UsageError if a folder is no run, or so damaged that nothing can be shown.
    """
    runs = [runs] if isinstance(runs, Path) else runs
    environment = make_environment(RELOAD if trains else 0)
    make = of_several if len(runs) > 1 else of_one
    try:
        return make(runs, environment, most_bytes)
    except UsageError:
        raise
    except (*DAMAGED, TemplateError) as error:
        problem = f"a file of it holds what no run writes ({type(error).__name__}: {error})"
        remedy = "mend that file, or take it away"
        raise UsageError(f"{', '.join(map(str, runs))}: {problem}; {remedy}") from None


def of_several(runs: Sequence[Path], environment: Environment, most_bytes: int) -> str:
    """Return the page that compares runs; it counts charts that do not fit."""
    told = comparison(runs)
    fitting = told["all_charts"] = len(told["charts"])
    while len((text := render(environment, told, (), "runs")).encode()) > most_bytes and fitting:
        fitting //= 2
        told["charts"] = told["charts"][:fitting]
    return text


def of_one(runs: Sequence[Path], environment: Environment, most_bytes: int) -> str:
    """Return the page of the one run; it counts groups that do not fit."""
    (run,) = runs
    told = contents(run)
    told["charts"] = list(charts.curves(told["metrics"], str(told["config"].get("modality"))))
    steps, remarks = inspector.traced_steps(run)
    told["remarks"] += remarks
    rows = ["token", *steps[0].rows] if steps else []
    shaded = [q for q in inspector.QUANTITIES if inspector.NEEDS.get(q[0], "token") in rows]
    told |= {"traced": steps, "rows": rows, "quantities": shaded, "checklist": checklist(run)}
    told |= {"histogram": histogram(steps), "questions": recurring(steps)}
    told["shown"] = {traced.step: {} for traced in steps}
    room = most_bytes - len(render(environment, told, steps).encode()) - REMARK_ROOM
    for traced, b, text in groups_as_html(environment, run / "trace", told):
        room -= len(text.encode()) + LINK * (1 + len({*traced.rewards[b]}))
        if room < 0:
            break
        told["shown"][traced.step][b] = text
    return render(environment, told, steps)


def groups_as_html(
    environment: Environment, folder: Path, told: Mapping[str, Any]
) -> Iterator[tuple[Traced, int, str]]:
    """Yield (step, group's index, HTML) of each traced step's first group, then its second, ...

    A group that cannot be read adds a remark to those of `told`.
    """
    template = environment.get_template("group.html")
    places = [(b, s) for s, step in enumerate(told["traced"]) for b in range(len(step.rewards))]
    for b, s in sorted(places):
        traced = told["traced"][s]
        try:
            group = inspector.group(traced, b, folder)
            asked = told["questions"].get(str(group["id"]))
            yield traced, b, template.render(group=group, asked=asked, step=traced.step, number=b)
        except (*DAMAGED, TemplateError):
            told["remarks"].append(f"Group {b + 1} of traced step {traced.step} cannot be read.")


def make_environment(reload: int = 0) -> Environment:
    """Return jinja2 with escaping on, which makes every string legible before it escapes it.

    If `reload` is not 0, an open page loads itself again every so many seconds.
    """
    from rewards.evaluation.rows import measured, percent, points

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.finalize = lambda value: legible(value) if type(value) is str else value
    environment.globals["reload"] = reload
    environment.filters |= {f.__name__: f for f in (charts.number, measured, percent, points)}
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
    labels = "\\A ".join(told.get("rows", ()))
    style = f':root {{ --rows: "{labels}"; --updates: {updates}; }}\n'
    style += (TEMPLATES / "report.css").read_text(encoding="utf-8")
    files = (TEMPLATES / f"{part}.js" for part in ("tokens", name))
    script = "".join(file.read_text(encoding="utf-8") for file in files if file.exists())
    hashes = {"style_hash": _hash(style), "script_hash": _hash(script)}
    template = environment.get_template(f"{name}.html")
    return template.render(told, style=style, script=script, **hashes)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

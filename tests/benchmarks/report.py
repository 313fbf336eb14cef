"""The report of finished and cut-off runs: size, build time, and what a browser complains of.

    python tests/benchmarks/report.py RUN...

Several are also compared on one page. Also builds the pages of made-up runs of 60 and of 2,000
steps, 20 of them traced, 16 groups of 8.
Writes tests/benchmarks/results/report.json, and a picture of each page beside --pictures.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from grpo.report import page as report
from tests.grpo.report.browser import PROGRAM, Browser
from tests.grpo.report.runs import make_run


def measured(run: Path | list[Path], name: str, picture: Path | None) -> dict[str, Any]:
    """Megabytes and seconds of a run's page, and the complaints of a browser that opens it."""
    start = time.perf_counter()
    page = report.page(run, 4_000_000)
    found: dict[str, Any] = {
        "name": name,
        "seconds": round(time.perf_counter() - start, 2),
        "mb": round(len(page.encode()) / 1e6, 2),
    }
    if PROGRAM:
        with tempfile.TemporaryDirectory() as folder, Browser() as browser:
            file = Path(folder) / "report.html"
            file.write_text(page, encoding="utf-8")
            browser.open(file)
            found["complaints"] = browser.complaints()
            found["groups"] = browser.js("document.querySelectorAll('.group').length")
            if picture:
                browser.picture(picture / f"{name}.png")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    results = [measured(run, run.name, options.pictures) for run in options.runs]
    if len(options.runs) > 1:
        results.append(measured(options.runs, f"{len(options.runs)} runs compared", None))
    for steps in (60, 2000):
        with tempfile.TemporaryDirectory() as folder:
            traced = tuple(range(steps // 20, steps + 1, steps // 20))
            shape = {"prompts_per_step": 16, "group_size": 8}
            run = make_run(Path(folder) / "run", steps, traced, **shape)
            results.append(measured(run, f"{steps} made-up steps", None))
    for found in results:
        print(found)
    place = Path(__file__).parent / "results" / "report.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

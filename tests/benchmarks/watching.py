"""What `python -m grpo.report RUN --watch` costs while a run trains: processor time a second.

    python tests/benchmarks/watching.py RUN --seconds 120

A copy of RUN gets a step a second from a process that holds its lock, as train.py does. Counted is
the processor time of the watching program (/proc, so Linux) from its first page on, over the time
that passed. Prints and writes tests/benchmarks/results/watching.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAINS = """
import fcntl, os, sys, time
handle = os.open(sys.argv[1] + "/train.lock", os.O_RDWR | os.O_CREAT)
fcntl.lockf(handle, fcntl.LOCK_EX)
metrics = sys.argv[1] + "/metrics.jsonl"
line = open(metrics).read().splitlines()[-1]
print("locked", flush=True)
while True:
    time.sleep(1)
    with open(metrics, "a") as file:
        file.write(line + chr(10))
"""


def seconds_of(process: subprocess.Popen) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(options.run, Path(folder) / options.run.name))
        (run / "summary.json").unlink(missing_ok=True)
        page = run / "report.html"
        page.unlink(missing_ok=True)
        words = [sys.executable, "-c", TRAINS, str(run)]
        trains = subprocess.Popen(words, stdout=subprocess.PIPE)
        trains.stdout.readline()
        words = [sys.executable, "-m", "grpo.report", str(run), "--watch"]
        watch = subprocess.Popen(words, cwd=ROOT)
        while not page.exists():
            time.sleep(0.1)
        begun, before, pages = time.monotonic(), seconds_of(watch), {page.stat().st_mtime_ns}
        while time.monotonic() < begun + options.seconds:
            time.sleep(0.1)
            pages.add(page.stat().st_mtime_ns)
        passed, used = time.monotonic() - begun, seconds_of(watch) - before
        trains.kill()
        watch.wait(600)
        size = page.stat().st_size
    found = {
        "run": options.run.name,
        "page_mb": round(size / 1e6, 2),
        "seconds": round(passed, 1),
        "pages": len(pages) - 1,
        "processor_seconds": round(used, 2),
        "share_of_a_core": round(used / passed, 5),
    }
    print(found)
    place = Path(__file__).parent / "results" / "watching.json"
    place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

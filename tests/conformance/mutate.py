"""Does the suite bite? Put one small bug at a time into a copy of the project and run the tests.

    python tests/conformance/mutate.py                     all of them: half an hour of two cores
    python tests/conformance/mutate.py --only GSPO delta   those with one of the words in the name
    python tests/conformance/mutate.py --check             only see that each can be put in

Writes results/mutations.json: name, file, the test that failed first, seconds. Exits with 1 where
a bug survives. Nothing but the copy is changed.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results") / "mutations.json"
LEFT_OUT = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "runs", "results", "*.md.part")
SECONDS = 600  # a bug that hangs the tests is seen, too
# Each suite runs in a process of its own, forked from one that has the large libraries already.
FORKS = multiprocessing.get_context("forkserver")
LIBRARIES = ["torch", "peft", "pytest", "tokenizers", "PIL.Image", "jinja2", "huggingface_hub"]
LIBRARIES += ["transformers.models.qwen2_vl.modeling_qwen2_vl"]


class Mutation(NamedTuple):
    name: str
    thread: str
    file: str
    old: str
    new: str

    def misfit(self) -> str:
        """Why it cannot be put in; "" where it can."""
        if (found := (ROOT / self.file).read_text(encoding="utf-8").count(self.old)) != 1:
            return f"{self.name}: found {found} times in {self.file}: {self.old!r}"
        if self.thread and not tests_of(self.thread):
            return f"{self.name}: no test of {self.thread}"
        return ""


Row = dict[str, object]
SOUND = Mutation("no bug at all", "", "grpo/loss.py", "LOG_RATIO_LIMIT = ", "LOG_RATIO_LIMIT = ")


def tests_of(thread: str) -> list[str]:
    """Return what to give pytest for the tests of one thread, or of the files that it lists."""
    if thread.startswith("tests/"):
        return [name for name in thread.split() if (ROOT / name).is_file()]
    files = Path(__file__).parent.glob("test_*.py")
    files = [file for file in files if f"\ndef test_{thread}_" in file.read_text()]
    names = [f"tests/conformance/{file.name}" for file in files]
    return names and [*names, "-k", f"test_{thread}_"]


def enter(copy: Path, output: Path) -> None:
    """Make this process one of the copy's: its folder, its modules; its output goes to a file."""
    os.chdir(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    sys.dont_write_bytecode = True
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def suite(copy: Path, tests: list[str], output: Path) -> None:
    """Run pytest in this process; its report is in `output` afterwards."""
    enter(copy, output)
    import pytest

    options = ["-x", "-q", "--no-header", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
    sys.exit(int(pytest.main([*options, *tests])))


def exit_code(work: Callable[..., None], *arguments: object, limit: int = SECONDS) -> int | None:
    """That of a process which does `work` with `arguments`; None if it was killed at the limit."""
    process = FORKS.Process(target=work, args=arguments)
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        return None
    return process.exitcode


def killed_by(copy: Path, tests: list[str]) -> str:
    """The first test that fails in the copy; "" where all pass."""
    output = copy.with_suffix(".txt")
    code = exit_code(suite, copy, tests, output)
    if code is None:
        return f"no end within {SECONDS} s"
    if code == 0:
        return ""
    report = output.read_text()
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/\S*?::)?(.+?)(?: - .*)?$", report, re.MULTILINE)
    return failed[1] if failed else f"exit {code}: {report[-300:]}"


@contextlib.contextmanager
def put_into(copy: Path, mutation: Mutation) -> Iterator[None]:
    """While it is entered, the copy has the bug."""
    place = copy / mutation.file
    sound = place.read_text(encoding="utf-8")
    mutated = sound.replace(mutation.old, mutation.new)
    compile(mutated, mutation.file, "exec")  # a syntax error would prove nothing
    place.write_text(mutated, encoding="utf-8")
    try:
        yield
    finally:
        place.write_text(sound, encoding="utf-8")


def tried(mutation: Mutation, copies: Queue[Path]) -> Row:
    """Put the bug into a copy that is free, test it, and take the bug out."""
    copy, start = copies.get(), time.monotonic()
    try:
        with put_into(copy, mutation):
            test = mutation.thread and killed_by(copy, tests_of(mutation.thread))
            test = test or killed_by(copy, ["tests/conformance"])
    finally:
        copies.put(copy)
    seconds = round(time.monotonic() - start, 1)
    print(f"{seconds:6.1f} s  {mutation.name}: {test or 'SURVIVED'}", flush=True)
    return {"name": mutation.name, "file": mutation.file, "killed_by": test, "seconds": seconds}


def copied(folder: Path) -> Path:
    """A copy of the project as `folder`, which is made."""
    return Path(shutil.copytree(ROOT, folder, ignore=LEFT_OUT))


def every_mutation() -> list[Mutation]:
    sys.path.insert(0, str(ROOT))
    from tests.conformance.mutations import MUTATIONS
    from tests.conformance.mutations_of_programs import PROGRAMS

    return [Mutation(*row) for row in (*MUTATIONS, *PROGRAMS)]


def keep(rows: dict[str, Row], names: list[str]) -> None:
    """Write these rows into the results, in the order of all names; others stay as they were."""
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    rows = {row["name"]: row for row in kept} | rows
    RESULTS.parent.mkdir(exist_ok=True)
    found = [rows[name] for name in names if name in rows]
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], help="only bugs with one of these words")
    parser.add_argument("--check", action="store_true", help="only see that each can be put in")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    options = parser.parse_args()
    every = every_mutation()
    mutations = [m for m in every if any(word in m.name for word in options.only)]
    if misfits := list(filter(None, [mutation.misfit() for mutation in mutations])):
        sys.exit("\n".join(["mutate.py: some bugs cannot be put in", *misfits]))
    if options.check:
        print(f"all {len(mutations)} can be put in")
        return
    os.nice(10)  # and so are the tests
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    FORKS.set_forkserver_preload(LIBRARIES)
    copies: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        for i in range(options.jobs):
            copies.put(copied(Path(folder) / str(i)))
        rows = {}
        for row in pool.map(lambda mutation: tried(mutation, copies), mutations):
            rows[row["name"]] = row
            keep(rows, [m.name for m in every])
        if test := tried(SOUND, copies)["killed_by"]:
            sys.exit(f"mutate.py: {test} fails without any bug: mend it, and try again")
    survivors = [name for name, row in rows.items() if not row["killed_by"]]
    print(f"{len(rows) - len(survivors)} of {len(rows)} killed; survivors: {survivors or 'none'}")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()

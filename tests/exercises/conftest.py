"""`pytest tests/exercises` grades the exercises: one item for each function that is to be written.

The suite does not: a blank is collected only if its file, or this folder, is on the command line.
"""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.conftest import named_paths
from tests.exercises import grader

FOLDER = Path(__file__).parent
GRADED = pytest.StashKey[dict[str, str]]()  # verdicts by the name of the function
CHECK = FOLDER / "test_grader.py"  # of the suite: whether blanks fail and solutions pass


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "grade the project's own functions in place of the answers in tests/exercises"
    parser.addoption("--solution", action="store_true", help=text)


def is_named(path: Path, config: pytest.Config) -> bool:
    return path.resolve() in (named.resolve() for named in named_paths(config))


def pytest_configure(config: pytest.Config) -> None:
    """Grading prints one list at the end, and no other text about what failed."""
    config.stash[GRADED] = {}
    if any(is_named(path, config) for path in (FOLDER, *FOLDER.glob("exercise_*.py"))):
        config.option.tbstyle, config.option.reportchars = "no", ""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whoever grades is not interested in the test of the grader."""
    return True if collection_path == CHECK and is_named(FOLDER, config) else None


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Nothing else looks into an exercise: an error in it is the verdict, not one of collection."""
    found = yield
    if not file_path.name.startswith("exercise_"):
        return found
    graded = is_named(file_path, parent.config) or is_named(FOLDER, parent.config)
    return [Exercise.from_parent(parent, path=file_path)] if graded else []


class Exercise(pytest.File):
    """A file with blanks."""

    def collect(self) -> Iterator[pytest.Item]:
        for name, blank in grader.BLANKS.items():
            if blank.file == self.path.stem:
                yield Blank.from_parent(self, name=name)


class Blank(pytest.Item):
    """One function: fails unless the grader calls it right."""

    def runtest(self) -> None:
        answer = grader.solution if self.config.getoption("--solution") else grader.answer
        found = grader.verdict(self.name, answer)
        self.config.stash[GRADED][self.name] = found
        if found != grader.RIGHT:
            pytest.fail(found, pytrace=False)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    graded = config.stash[GRADED]
    if not graded:
        return
    whose = "the project's own functions" if config.getoption("--solution") else "your answers"
    terminalreporter.section(whose)
    for name, found in graded.items():
        color = {"green": found == grader.RIGHT, "red": found.startswith(grader.WRONG)}
        terminalreporter.line(f"{grader.BLANKS[name].number} {name:<18} {found}", **color)

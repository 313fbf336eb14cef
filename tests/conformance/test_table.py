"""README.md's table: complete, true, and the whole of this folder."""

import ast
import re
from pathlib import Path

from tests.conformance.mutations import MUTATIONS
from tests.conformance.mutations_of_programs import PROGRAMS

HERE = Path(__file__).parent
ROWS = re.findall(r"^\| (\d+)(?: †)? \| (.+?) \| (.+?) \| (.+?) \|$",
                  (HERE / "README.md").read_text("utf-8"), re.MULTILINE)  # fmt: skip


def kept_tests() -> dict[str, ast.FunctionDef]:
    return {
        node.name: node
        for file in HERE.glob("test_*.py")
        if file.name != "test_table.py"
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_the_table_counts_from_1_to_57():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 58))


def test_every_test_named_exists_and_every_test_is_named():
    named = [name for row in ROWS for name in re.findall(r"`(test_\w+)`", row[3])]
    assert len(named) == len(set(named))
    assert set(named) == set(kept_tests())
    assert all("`test_" in row[3] for row in ROWS)
    files = [name for row in ROWS for name in re.findall(r"`(tests/\S+\.py)`", row[3])]
    assert all((HERE.parents[1] / name).is_file() for name in files)


def test_a_test_has_the_name_of_its_rows_thread():
    for _, thread, _, test in ROWS:
        repository, _, number = thread.split(",")[0].partition("#")
        letters = re.sub("[^a-z0-9]", "", repository.lower()) + number
        for name in re.findall(r"`test_(\w+)`", test) if number else ():
            assert name.replace("_", "").startswith(letters)


def test_every_docstring_says_in_two_lines_what_went_wrong_and_what_is_asserted():
    for name, test in kept_tests().items():
        there, here = ast.get_docstring(test).split("\n")
        assert there.startswith("There, "), name
        assert here.startswith("Here, "), name


def test_the_small_bugs_are_counted_and_each_has_a_name_of_its_own():
    every = [*MUTATIONS, *PROGRAMS]
    for file in (HERE / "README.md", HERE.parents[1] / "README.md"):
        assert re.findall(r"(\d+) small bugs", file.read_text("utf-8")) == [str(len(every))]
    assert len({name for name, *_ in every}) == len(every)

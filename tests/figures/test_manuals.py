"""What the README.md files name is there: links, files, functions, folders; and their figures."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("grpo", "models", "rewards", "data")
TEXTS = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in sorted(ROOT.rglob("README.md"))
    if not {".pytest_cache", ".venv", "runs"} & set(file.relative_to(ROOT).parts)
}
# The manuals written under the limit on the length of a line; those of tests/ have wider tables.
FOR_USERS = {name: text for name, text in TEXTS.items() if name.split("/")[0] != "tests"}
README = TEXTS["README.md"]
RESULTS = ROOT / "tests/campaigns/results/seeds.json"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a text."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_anchors_are_githubs() -> None:
    text = "# I want to ...\n## What is left out, and why\n### `--explain`: one_step\n"

    assert anchors(text) == {"i-want-to-", "what-is-left-out-and-why", "--explain-one_step"}


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for name, text in TEXTS.items():
        links = re.findall(r"\]\(([^)\s]+)\)|\bsrc(?:set)?=\"([^\"]+)\"", text)
        for link in filter(None, (first or second for first, second in links)):
            if link.startswith(("https://", "http://")):
                continue
            path, _, anchor = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            if not target.exists():
                wrong.append(f"{name}: {link}: no such file")
            elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
                wrong.append(f"{name}: {link}: no such heading")
    assert wrong == []


def test_every_file_and_function_named_is_there() -> None:
    place = rf"(?:{'|'.join((*PACKAGES, 'tests'))})/[\w./-]*"
    wrong, functions = [], 0
    for name, text in TEXTS.items():
        wrong += [
            f"{name}: {path}"
            for path in re.findall(rf"(?<![\w./-])({place})(?=[`\s])", text)
            if not (ROOT / path).exists()
            and not ((ROOT / name).parent / path).exists()
            and "NAME" not in path
        ]
        for path, function in re.findall(rf"({place}\.py): ?(?:\w+\.)?(\w+)", text):
            functions += 1
            file = ROOT / path
            source = file.read_text(encoding="utf-8") if file.exists() else ""
            if not re.search(rf"(def|class) {function}\b", source):
                wrong.append(f"{name}: {path}: {function}")
    assert wrong == []
    assert functions >= 12


def test_the_map_names_every_folder_and_no_other() -> None:
    (block,) = re.findall(r"## The map\n\n((?:    .*\n)+)", README)
    package, named = "", set()
    for line in block.splitlines():
        inner, entry = re.findall(r"^    (  )?(\S+)", line)[0]
        package = package if inner else entry
        named.add(f"{package}{entry}" if inner else entry)

    folders = {
        f"{child.relative_to(ROOT).as_posix()}/"
        for package in PACKAGES
        for child in (ROOT / package).iterdir()
        if child.is_dir() and any(child.glob("__init__.py"))
    }
    assert folders - named == set()
    assert [entry for entry in sorted(named) if not (ROOT / entry).exists()] == []


def test_the_first_manual_is_short_and_no_line_is_long() -> None:
    assert README.count("\n") <= 180
    wrong = [
        f"{name}:{number}: {len(line)} characters"
        for name, text in FOR_USERS.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if len(line) > 105 and not line.startswith(("|", "    "))
    ]
    assert wrong == []


def rows(text: str) -> list[list[str]]:
    """The cells of every table row that shows gains with their intervals."""
    lines = [line for line in text.splitlines() if re.search(r"\| [+-][\d.]+ \[", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def expected(arm: str, modality: str, with_format: bool) -> list[str]:
    """The cells of an arm on a modality as tests/campaigns/results/seeds.json has them."""
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))["arms"][arm][modality]
    names = ["accuracy", *["format_rate"] * with_format, "forced_choice"]
    cells = [
        f"{100 * figures['base'][name]:.1f} → {100 * figures['trained'][name]:.1f}"
        for name in names
    ]
    for name in ("accuracy", "forced_choice"):
        gain = figures["gain"][name]
        low, high = (f"{100 * end:+.1f}" for end in gain["ci95"])
        cells.append(f"{100 * gain['gain']:+.1f} [{low}, {high}]")
    return cells


def test_the_tables_of_gains_are_those_of_the_results() -> None:
    of_phantoms = [
        found
        for found in rows(TEXTS["rewards/evaluation/README.md"])
        if found[1] in ("MRI", "CT", "XRAY")  # the table of real images is of other arms
    ]
    assert len(of_phantoms) == 15
    for arm, modality, *cells in of_phantoms:
        assert cells == expected(arm, modality, with_format=True), (arm, modality)

    shown = [("GRPO", "MRI"), ("GRPO", "CT"), ("GRPO", "XRAY"), ("SFT, answers", "MRI")]
    cells = [cells for _, *cells in rows(README)]
    assert cells == [expected(*pair, with_format=False) for pair in shown]


def test_the_last_line_shown_is_that_of_a_kept_run() -> None:
    kept = json.loads((ROOT / "tests/campaigns/results/default_run.json").read_text())
    line, _, _ = kept["last_line"].partition(": ")[2].partition("Next:")

    assert line in " ".join(README.split())


def test_every_metric_of_a_run_is_explained() -> None:
    """In a table row, `min_length` after `completions/mean_length` is completions/min_length."""
    (table,) = re.findall(
        r"^## Metrics\n(?:.*\n)+?(?=## )", TEXTS["grpo/run/README.md"], re.MULTILINE
    )
    lines = [set(re.findall(r"`([\w/]+)`", line)) for line in table.splitlines()]

    def explained(name: str) -> bool:
        prefix, _, last = name.rpartition("/")
        shared = [names for names in lines if any(n.startswith(f"{prefix}/") for n in names)]
        return any(name in names for names in lines) or any(last in names for names in shared)

    file = ROOT / "tests/fixtures/run/finished/metrics.jsonl"
    written = {name for line in file.read_text().splitlines() for name in json.loads(line)}
    plain = {re.sub(r"^rewards/\w+/", "rewards/NAME/", name) for name in written}
    plain = {re.sub(r"^val/[A-Z]+/", "val/", name) for name in plain}
    assert [name for name in sorted(plain) if not explained(name)] == []

"""Count the lines and minutes of README.md's reading order.

python tests/figures/reading.py             show what the table should say
python tests/figures/reading.py --write     write it into README.md
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES_A_MINUTE = 15
ROW = re.compile(r"^\| `(?P<file>[\w/]+\.py)` \| \d+ \| \d+ \|", re.MULTILINE)
TOTAL = re.compile(r"\d+(?=\s+minutes,\s+at\s+15\s+lines\s+a\s+minute)")


def files(text: str) -> list[str]:
    """The files of the reading order, in the order of the table."""
    return [row["file"] for row in ROW.finditer(text)]


def counted(text: str) -> str:
    """The text of README.md with the lines and minutes of the files as they are now.

    Raises FileNotFoundError if the table names a file that does not exist.
    """
    lines = {file: (ROOT / file).read_text(encoding="utf-8").count("\n") for file in files(text)}
    minutes = {file: round(count / LINES_A_MINUTE) for file, count in lines.items()}

    def row(match: re.Match[str]) -> str:
        file = match["file"]
        return f"| `{file}` | {lines[file]} | {minutes[file]} |"

    return TOTAL.sub(str(sum(minutes.values())), ROW.sub(row, text))


def main() -> None:
    readme = ROOT / "README.md"
    text = counted(readme.read_text(encoding="utf-8"))
    if "--write" in sys.argv[1:]:
        readme.write_text(text, encoding="utf-8")
    print(*(match[0] for match in ROW.finditer(text)), *TOTAL.findall(text), sep="\n")


if __name__ == "__main__":
    main()

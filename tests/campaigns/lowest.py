"""The default tests with the oldest packages that requirements.txt admits. By hand:

    python tests/campaigns/lowest.py FOLDER [pytest's arguments]

Makes FOLDER a virtual environment with the packages of tests/lowest.txt, or uses it as it is, and
runs pytest there; the exit code is pytest's. The index has torch 2.11 as a CUDA build of 5 GB,
which runs without a GPU too.
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(folder: Path, arguments: list[str]) -> int:
    """pytest's exit code."""
    python = folder.absolute() / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "-r", "tests/lowest.txt"]
    subprocess.run(install, cwd=ROOT, check=True)
    return subprocess.run(
        [python, "-m", "pytest", "-q", *arguments], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:]))

"""The program `python -m grpo.explain RUN --page FILE`."""

import sys
from pathlib import Path

from grpo.explain.page import write_page
from grpo.settings.errors import UsageError, exit_on_usage_error

with exit_on_usage_error("grpo.explain"):
    match sys.argv[1:]:
        case [run, "--page", file] | ["--page", file, run]:
            write_page(Path(run), file)
            print(f"wrote {file}")
        case _:
            raise UsageError("call it as python -m grpo.explain RUN --page FILE")

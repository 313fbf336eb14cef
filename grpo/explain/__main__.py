"""The program `python -m grpo.explain RUN --page FILE`; without RUN, of the newest finished run."""

import sys
from pathlib import Path

from grpo.explain.page import write_page
from grpo.run.folder import newest_run
from grpo.settings.errors import UsageError, exit_on_usage_error

with exit_on_usage_error("grpo.explain"):
    match sys.argv[1:]:
        case [*run, "--page", file] if len(run) < 2:
            write_page(Path(*run) if run else newest_run(), file)
            print(f"wrote {file}")
        case _:
            raise UsageError("call it as python -m grpo.explain RUN --page FILE")

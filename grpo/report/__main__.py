"""The program `python -m grpo.report`."""

from grpo.report.page import main
from grpo.settings.errors import exit_on_usage_error

with exit_on_usage_error("grpo.report"):
    main()

"""The program `python -m grpo.reproduce`."""

from grpo.reproduce.run_table import main
from grpo.settings.errors import exit_on_usage_error

with exit_on_usage_error("grpo.reproduce"):
    main()

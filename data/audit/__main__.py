"""The program `python -m data.audit`."""

from data.audit.audit import PROG, main
from grpo.settings.errors import exit_on_usage_error

with exit_on_usage_error(PROG):
    main()

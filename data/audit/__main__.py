"""The program `python -m data.audit`."""

from data.audit.audit import PROG, main
from grpo.settings.errors import exit_on_usage_error

if __name__ == "__main__":
    with exit_on_usage_error(PROG):
        main()

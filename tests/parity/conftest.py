"""Nothing here is of the suite: it needs TRL, which has an environment of its own (README.md)."""

collect_ignore_glob = ["*.py"]

"""TRL has an environment of its own (requirements.txt): the suite must not import its side."""

collect_ignore = ["trl_side.py"]

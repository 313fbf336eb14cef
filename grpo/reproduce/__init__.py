"""`python -m grpo.reproduce`: the tables of three papers."""

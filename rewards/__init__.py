"""Rewards of a completion, the judges behind some of them, and the scores of an evaluation."""

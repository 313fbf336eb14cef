"""Drawn scenes with questions: not medical data."""

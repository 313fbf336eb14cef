"""Predictions to scores, intervals and tables."""

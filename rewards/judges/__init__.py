"""Models that grade an answer or its reasoning."""

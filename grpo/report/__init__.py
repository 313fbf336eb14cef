"""`python -m grpo.report`: a run as one HTML page."""

"""`python -m data.audit`: what a data set on disk holds."""

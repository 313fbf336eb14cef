"""Every setting of a run, and the flags that set it."""

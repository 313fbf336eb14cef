"""What a run will hold in memory: one fake step, what fits, and the flags that ask."""

"""The run folder: what a run writes, how it stops and how it goes on."""

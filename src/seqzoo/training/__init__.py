"""The loop, the optimiser and its schedule, checkpoints, logs. Knows no family and no task by
name."""

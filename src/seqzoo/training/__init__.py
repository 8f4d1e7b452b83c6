"""The training loop, its step, hooks, loggers, optimisers and schedules. Knows no family and no
task by name."""

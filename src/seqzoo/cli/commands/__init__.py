"""One small file a command: `add(parser)` declares its options, `run(options)` does it."""

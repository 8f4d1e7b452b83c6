"""What a run leaves behind: its directory, its checkpoints, and `Run`, which is a run read back."""

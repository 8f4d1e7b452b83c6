"""What trained models are looked at with: several runs side by side, and inside one."""

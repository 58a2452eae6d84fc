"""What a checkpoint holds: its plan, where its layers come from, its weights and its updates."""

"""State, optimiser, step, loop, checkpoints."""

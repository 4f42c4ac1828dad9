"""Tasks: what a model is trained for, from batches and losses to predictions and scores."""

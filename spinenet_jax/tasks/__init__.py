"""A task joins a model's outputs with targets, losses and post-processing."""

"""Converts published TensorFlow checkpoints to ours, and back."""

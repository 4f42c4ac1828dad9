"""Published TensorFlow checkpoints to ours, and back."""

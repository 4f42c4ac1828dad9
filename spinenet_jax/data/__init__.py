"""Host-side input: readers, augmentation, batches of numpy arrays."""

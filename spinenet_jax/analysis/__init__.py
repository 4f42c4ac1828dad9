"""What a configuration costs before it runs: counted from the model, told by the TPU compiler."""

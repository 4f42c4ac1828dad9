"""Flax modules: scale-permuted backbones, baselines, heads."""

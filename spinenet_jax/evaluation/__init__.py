"""Metrics on a data set, from predictions."""

"""How long calls of a JAX function take."""

import statistics
import time

import jax


def call_seconds(function, *arguments, repeats):
    """Seconds of each of `repeats` calls after one that is not timed, results waited for."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return seconds


def median_seconds(function, *arguments, repeats):
    """The median of `call_seconds`."""
    return statistics.median(call_seconds(function, *arguments, repeats=repeats))

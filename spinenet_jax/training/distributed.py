"""How does a process find the other processes of a run, and where do compiled programs stay?

To be called once, before anything touches a device.
"""

from __future__ import annotations

import glob
import importlib.util
import os

import jax

from spinenet_jax.errors import UserError

DEFAULT_CACHE = os.path.join('~', '.cache', 'spinenet_jax', 'xla')


def use_compilation_cache() -> str:
    """Keep compiled programs between runs; returns the folder.

    JAX_COMPILATION_CACHE_DIR in the environment overrides ~/.cache/spinenet_jax/xla. Programs that
    compile in less than a second, which JAX leaves out by default, are kept as well.
    """
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or os.path.expanduser(DEFAULT_CACHE)
    jax.config.update('jax_compilation_cache_dir', folder)
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    return folder


def initialise(coordinator_address: str = '', num_processes: int = 0, process_id: int = -1) -> None:
    """Join the other processes of the run, one a host; nothing to do for a single process.

    With an address given, all three must be: 'host:port' of process 0, the number of processes
    and this process's number from 0. Without, a TPU VM finds its slice by itself, and every
    other machine runs alone.

    Raises UserError for flags that are incomplete or do not fit each other.
    """
    if coordinator_address:
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise UserError(
                f'--coordinator_address needs --num_processes (is {num_processes}) and '
                f'--process_id from 0 to num_processes - 1 (is {process_id})'
            )
        if coordinator_address.count(':') != 1:
            raise UserError(
                f"--coordinator_address='{coordinator_address}' must read host:port, "
                'for example 10.0.0.2:1234'
            )
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    elif num_processes > 0 or process_id >= 0:
        raise UserError('--num_processes and --process_id need --coordinator_address=host:port')
    elif _on_tpu_vm():
        jax.distributed.initialize()


def _on_tpu_vm() -> bool:
    """Whether TPU chips and their library are here and not switched off by JAX_PLATFORMS."""
    platforms = os.environ.get('JAX_PLATFORMS', '')
    wanted = not platforms or 'tpu' in platforms
    chips = glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*')
    return bool(wanted and chips and importlib.util.find_spec('libtpu'))

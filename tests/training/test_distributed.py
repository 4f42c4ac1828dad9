"""Flags that join processes, and the folder of compiled programs."""

import jax
import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.training import distributed


@pytest.mark.parametrize(
    ('flags', 'line'),
    [
        (('10.0.0.2:1234', 0, 0), r'needs --num_processes \(is 0\)'),
        (('10.0.0.2:1234', 2, 2), r'--process_id from 0 to num_processes - 1 \(is 2\)'),
        (('10.0.0.2:1234', 2, -1), r'\(is -1\)'),
        (('10.0.0.2', 2, 0), 'must read host:port'),
        (('', 2, 0), 'need --coordinator_address'),
        (('', 0, 1), 'need --coordinator_address'),
    ],
)
def test_incomplete_flags_are_refused(flags, line):
    with pytest.raises(UserError, match=line):
        distributed.initialise(*flags)


def test_alone_there_is_nothing_to_join():
    distributed.initialise()
    assert jax.process_count() == 1 and not jax.distributed.is_initialized()


def test_cache_folder(monkeypatch, tmp_path):
    names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
    before = {name: getattr(jax.config, name) for name in names}
    try:
        monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
        assert distributed.use_compilation_cache() == str(tmp_path)
        monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
        monkeypatch.setenv('HOME', '/home/someone')
        folder = distributed.use_compilation_cache()
        assert folder == '/home/someone/.cache/spinenet_jax/xla'
        assert jax.config.jax_compilation_cache_dir == folder
        assert jax.config.jax_persistent_cache_min_compile_time_secs < 1
    finally:
        for name, value in before.items():
            jax.config.update(name, value)

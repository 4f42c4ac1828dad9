"""The Model Garden's environment: SPINENET_ORACLE_PYTHON names its python, or it is built.

Built by tools/maintenance/make_oracle_env.sh (about 2 GB) in SPINENET_ORACLE_CACHE, by default
~/.cache/spinenet_jax/oracle.
"""

import os
import pathlib

import pytest

from tests.convert import scripts

CACHE = '~/.cache/spinenet_jax/oracle'


@pytest.fixture(scope='session')
def oracle():
    """The oracle's python."""
    if named := os.environ.get('SPINENET_ORACLE_PYTHON'):
        return named
    folder = pathlib.Path(os.environ.get('SPINENET_ORACLE_CACHE', CACHE)).expanduser()
    scripts.run('tools/maintenance/make_oracle_env.sh', str(folder))
    return str(folder / 'bin' / 'python')

"""Checks paths in buckets of object storage: which kinds there are, and the package each needs."""

import importlib.util

from spinenet_jax.errors import UserError

# What etils reaches a bucket with; JAX's checkpoints have their own drivers for both kinds.
PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}
# Whose errors say that a store did not answer as it should.
CLIENTS = (
    *PACKAGES.values(),
    *('aiohttp', 'aiobotocore', 'botocore', 'google.api_core', 'google.auth', 'google.cloud'),
)


def is_bucket(path: str) -> bool:
    """Whether a path is none of this machine's: gs://bucket/folder."""
    return '://' in path


def check(path: str) -> None:
    """Refuses a path in a bucket that cannot be reached from here; a local path passes.

    Raises:
      UserError: an unknown kind of storage, or a package is missing.
    """
    if not is_bucket(path):
        return
    kind, _, name = path.partition('://')
    if kind not in PACKAGES:
        known = ' and '.join(f'{known}://' for known in PACKAGES)
        raise UserError(f'{path}: storage of an unknown kind: want a folder here, or {known}')
    if not name.strip('/'):
        raise UserError(f'{path}: the name of the bucket is missing')
    package = PACKAGES[kind]
    if importlib.util.find_spec(package) is None:
        raise UserError(f'{path}: {kind}:// needs the package {package}: pip install {package}')


def is_store_error(error: BaseException) -> bool:
    """Whether an error is of a client of an object store: refused, out of reach, too busy."""
    module = type(error).__module__
    return any(f'{module}.'.startswith(f'{client}.') for client in CLIENTS)

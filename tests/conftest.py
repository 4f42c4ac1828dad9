"""Settings every test shares: CPU with four devices, and programs compiled in a hurry."""

import os
import tempfile
from importlib import metadata

from packaging.version import Version

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Most of the time of the tests is compilation. Without LLVM's optimisations it takes a quarter
# less, and the programs are too small to miss them.
WANTED = [
    ('xla_force_host_platform_device_count', '4'),
    ('xla_backend_optimization_level', '0'),
    # A device that has waited this long for the others ends the process. By default it is 40 s,
    # which one of them may take on a busy machine.
    ('xla_cpu_collective_call_terminate_timeout_seconds', '600'),
]
if Version(metadata.version('jaxlib')) < Version('0.11.1'):
    # The older emitters of fused loops compile programs of this size in half the time; a real
    # training step takes them longer. Later versions have none, and XLA ends the process over a
    # flag that it does not know.
    WANTED.append(('xla_cpu_use_fusion_emitters', 'false'))
_flags = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join(
    [_flags, *(f'--{name}={value}' for name, value in WANTED if name not in _flags)]
).strip()

# Both processes of the tests, and those that tests start, share what they have compiled: a fifth of
# the processor time. Nothing is kept after them, so that every run starts alike.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.05')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix='spinenet-tests-')  # removed as this process ends
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name

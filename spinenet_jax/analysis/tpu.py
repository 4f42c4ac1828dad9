"""Compiles a step for TPUs that need not be there, and reads memory, work and time from it.

Needs `libtpu` (pip install libtpu), no TPU.
"""

import os
import re
import time
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from spinenet_jax.analysis import hlo
from spinenet_jax.analysis.cost import config_cost
from spinenet_jax.errors import UserError

GIB = 2**30


class Core(NamedTuple):
    """What JAX calls a device: a core of v2 and v3, a whole chip of the others.

    Attributes:
      memory: bytes. peak: bfloat16 operations a second (Google Cloud's TPU pages).
      clock: cycles a second, from the peak and the size and number of the matrix units.
    """

    memory: int
    peak: float
    clock: float


CORES = {
    'v2': Core(8 * GIB, 22.5e12, 700e6),
    'v3': Core(16 * GIB, 61.5e12, 940e6),
    'v4': Core(32 * GIB, 275e12, 1050e6),
    'v5e': Core(16 * GIB, 197e12, 1500e6),
    'v5p': Core(95 * GIB, 459e12, 1750e6),
    'v6e': Core(32 * GIB, 918e12, 1750e6),
}


WORK = ('fusion', 'custom-call', 'select-and-scatter', 'reduce-window', 'scatter', 'gather', 'sort')


class Program(NamedTuple):
    """A step compiled for a topology.

    Attributes:
      executable: what `.compile()` gave, or None where the compiler found that it does not fit.
      refusal: the compiler's line in that case, '' otherwise.
      held: bytes a core by purpose: 'parameters', 'optimizer', 'statistics', 'batch'; unpadded.
      seconds: processor time of the compilation, all threads together.
    """

    executable: jax.stages.Compiled | None
    refusal: str
    held: dict[str, int]
    seconds: float


def topology_devices(name: str) -> list[jax.Device]:
    """The cores of a topology that need not exist, such as 'v3:8x8x1' (64 chips, 128 cores).

    Raises:
      UserError: libtpu is missing, or it knows no such topology.
    """
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # do not look for a TPU in the network
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # compiling holds no TPU
    from jax.experimental import topologies

    if name.partition(':')[0] not in CORES:
        raise UserError(f'--topology={name}: choose a chip of {", ".join(CORES)}, as in v3:8x8x1')
    # A v4 chip has two cores and a TPU VM shows them as one device, as this describes it.
    options = {'chip_config_name': 'megacore'} if name.startswith('v4:') else {}
    try:
        return topologies.get_topology_desc(name, platform='tpu', **options).devices
    except Exception as error:  # the plugin raises what it likes
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f'--topology={name}: {reason} (the TPU compiler comes with: pip install "jax[tpu]")'
        ) from error


def compile_program(lowered: jax.stages.Lowered, held: dict[str, int]) -> Program:
    """Compile a lowered step.

    Args:
      lowered: for devices of a topology.
      held: see `Program`.
    """
    start = time.process_time()
    try:
        executable, refusal = lowered.compile(), ''
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        executable, refusal = None, str(error)
    return Program(executable, refusal, held, time.process_time() - start)


def memory(program: Program) -> dict[str, int]:
    """Bytes a core: 'peak', and what it is made of.

    Arguments (state and batch, with the padding of their layouts), results that do not reuse an
    argument's memory, temporaries (activations, gradients) and the program itself. Of a step that
    does not fit only the peak is known, or that of the temporaries, if the compiler tells it.
    """
    if program.executable is None:
        used = re.search(r'(?:Used |temporaries \()([\d.]+)([KMGT])', program.refusal)
        unit = {'K': 2**10, 'M': 2**20, 'G': GIB, 'T': 2**40}
        return {'peak': int(float(used[1]) * unit[used[2]])} if used else {}
    stats = program.executable.memory_analysis()
    parts = {
        'arguments': stats.argument_size_in_bytes,
        'results': stats.output_size_in_bytes - stats.alias_size_in_bytes,
        'temporaries': stats.temp_size_in_bytes,
        'program': stats.generated_code_size_in_bytes,
    }
    return {'peak': sum(parts.values()), 'donated': stats.alias_size_in_bytes, **parts}


def network_flops(config: ConfigDict, train: bool) -> int:
    """Operations an image needs: two a multiply-add of the network, thrice that to train it.

    What the compiler adds (recomputation, padding, losses) does not count.
    """
    multiply_adds = sum(cost.multiply_adds for cost in config_cost(config, train=train).values())
    return 2 * (3 if train else 1) * multiply_adds


def work(program: Program) -> tuple[dict[str, Any], list[hlo.Operation]]:
    """What one step costs a core, and the operations it consists of.

    Returns:
      'flops', 'bytes' and 'bound_seconds' by XLA's cost analysis, which takes every operation at
      the peak of the matrix unit or of the memory, whichever is slower (0 if it does not say);
      'cycles', the sum of what the compiler expects of every operation after it has chosen tiles
      and layouts, collectives not included; 'unestimated', number and bytes of the results of other
      operations for which it expects nothing; 'collectives' by place.
    """
    analysis = program.executable.cost_analysis()
    found = hlo.operations(program.executable.as_text())
    return {
        'flops': analysis['flops'],
        'bytes': analysis['bytes accessed'],
        'bound_seconds': max(0.0, analysis['optimal_seconds']),  # not from v4 on
        'cycles': sum(operation.cycles for operation in found),
        'unestimated': _unestimated(found),
        'collectives': {k: v._asdict() for k, v in hlo.collectives(found).items()},
    }, found


def _unestimated(found: list[hlo.Operation]) -> dict[str, int]:
    """Operations that work on arrays and have no estimate: gradients of max-pools, a few more."""
    silent = [o for o in found if o.cycles == 0 and o.kind in WORK and o.output_bytes > 4]
    return {
        'count': sum(o.times for o in silent),
        'bytes': sum(o.times * o.output_bytes for o in silent),
    }

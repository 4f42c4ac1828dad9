"""Compiles a training or evaluation step for a TPU, without one, and prints its cost.

python tools/compile_for_tpu.py --config=configs/retinanet.py:49-B --topology=v3:8x8x1
python tools/compile_for_tpu.py --config=configs/retinanet.py:49-B --topology=v3:8x8x1 --eval

Takes minutes and a few GiB for a full model. Needs pip install "jax[tpu]", no TPU. With --record, a
line is added to the log that docs/tpu.md is made from (tools/maintenance/tpu_table.py). Exit status
1: does not fit.
"""

import collections
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from spinenet_jax import launch  # noqa: E402

FLAGS = flags.FLAGS
LOG = ROOT / 'benchmarks/logs/tpu_compile.jsonl'


def define_flags() -> None:
    """Define the flags of this script."""
    config_flags.DEFINE_config_file('config', None, 'As for train.py.')
    flags.DEFINE_string(
        'topology', 'v3:8x8x1', 'Chip and layout: v3:8x8x1 has 64 chips, 128 cores.'
    )
    flags.DEFINE_integer('global_batch', 0, "Images a step over all cores; 0: the config's.")
    flags.DEFINE_bool('eval', False, 'The evaluation step, with post-processing.')
    flags.DEFINE_integer('costliest', 0, 'Also print this many of the costliest operations.')
    flags.DEFINE_string('hlo', '', 'File for the optimised program, to study.')
    flags.DEFINE_bool('record', False, f'Append the figures to {LOG.relative_to(ROOT)}.')
    flags.mark_flag_as_required('config')


def main() -> int:
    """Compile, print, log; 1 if the step does not fit the memory."""
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from spinenet_jax import settings
    from spinenet_jax.analysis import tpu
    from spinenet_jax.lowering.policy import policy_of
    from spinenet_jax.parallel import AXIS
    from spinenet_jax.tasks.build import build_task_model
    from spinenet_jax.training import programs
    from spinenet_jax.training.memory import choose_remat

    config = FLAGS.config
    settings.check(config)
    devices = tpu.topology_devices(FLAGS.topology)
    batch_size = _set_batch_size(config, len(devices))
    core = tpu.CORES[FLAGS.topology.partition(':')[0]]
    remat = not FLAGS.eval and choose_remat(config, len(devices), core.memory)
    policy = policy_of(devices[0])
    model = build_task_model(config, axis_name=AXIS, policy=policy, remat=remat)
    lower = programs.lower_eval_step if FLAGS.eval else programs.lower_train_step
    program = tpu.compile_program(*lower(config, model, devices))
    record = _describe_run(config, len(devices), batch_size) | {'remat': remat}
    record |= {'compile_cpu_seconds': round(program.seconds, 1), 'held': program.held}
    record |= {'memory': tpu.memory(program), 'fits': program.executable is not None}
    record |= {'core': core._asdict()}
    found = []
    if program.executable is not None:
        figures, found = tpu.work(program)
        network = tpu.network_flops(config, train=not FLAGS.eval)
        record |= figures | {'network_flops': network * record['images_a_core']}
        record |= _rates(record)
        if FLAGS.hlo:
            Path(FLAGS.hlo).write_text(program.executable.as_text())
    _print(record)
    _print_costliest(found, record)
    if FLAGS.record:
        with LOG.open('a') as log:
            log.write(json.dumps(record) + '\n')
    return 0 if record['fits'] else 1


def _set_batch_size(config: Any, devices: int) -> int:
    """Put --global_batch, or the config's number as the scripts would use it, into the config."""
    from spinenet_jax.errors import UserError
    from spinenet_jax.training.step import check_batch_size

    if config.model.num_classes < 1:
        raise UserError('model.num_classes=0: there is no data to take it from; say how many')
    section = config.eval if FLAGS.eval else config.train
    section.batch_size = FLAGS.global_batch or section.batch_size
    if not FLAGS.eval:
        check_batch_size(section.batch_size, devices, config.optim.accumulate_steps)
    elif section.batch_size < 1:
        raise UserError(f'eval.batch_size={section.batch_size}: must be positive')
    else:
        section.batch_size = devices * -(-section.batch_size // devices)  # as eval.py fills up
    return section.batch_size


def _commit() -> str:
    """The checkout's commit, '-dirty' if files other than the logs differ; '' without git."""

    def git(*words: str) -> str:
        command = ['git', '-C', str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        changed = git('status', '--porcelain', '--untracked-files=no', '--', ':!benchmarks/logs')
        return git('describe', '--always') + ('-dirty' if changed else '')
    except FileNotFoundError:
        return ''


def _describe_run(config: Any, cores: int, batch_size: int) -> dict[str, Any]:
    """What was asked for, and with which versions."""
    words = zip(sys.argv[1:], [*sys.argv[2:], ''], strict=True)
    changes = [w if '=' in w else f'{w}={after}' for w, after in words if w.startswith('--config.')]
    return {
        'config': config_flags.get_config_filename(FLAGS['config']),
        'changes': [change.removeprefix('--config.') for change in changes],
        'step': 'eval' if FLAGS.eval else 'train',
        'topology': FLAGS.topology,
        'cores': cores,
        'image_size': list(config.data.image_size),
        'global_batch': batch_size,
        'images_a_core': batch_size // cores,
        'accumulate_steps': config.optim.accumulate_steps,
        'jax': metadata.version('jax'),
        'libtpu': metadata.version('libtpu'),
        'commit': _commit(),
    }


def _rates(record: dict[str, Any]) -> dict[str, float]:
    """Times, and what follows from them."""
    core = record['core']
    seconds = record['cycles'] / core['clock']
    bound = record['bound_seconds'] and record['network_flops'] / record['bound_seconds']
    return {
        'seconds': seconds,
        'images_per_second': record['global_batch'] / seconds,
        'share_of_peak': record['network_flops'] / seconds / core['peak'],
        'bound_share_of_peak': bound / core['peak'],
    }


def _print(record: dict[str, Any]) -> None:
    gib, held, memory = 2**30, record['held'], record['memory']
    limit = record['core']['memory']
    print(
        f'{record["config"]} {" ".join(record["changes"])}: {record["step"]} step for '
        f'{record["topology"]}, {record["cores"]} cores, {record["images_a_core"]} images a core'
    )
    print(f'compiled in     {record["compile_cpu_seconds"]:.0f} s of processor time')
    peak = f'{memory["peak"] / gib:.2f} GiB' if memory else 'not told'
    print(
        f'memory a core   {peak} of {limit / gib:.0f} GiB: '
        + ', '.join(f'{k} {v / gib:.2f}' for k, v in {**held, **memory}.items() if k != 'peak')
    )
    if not record['fits']:
        print('DOES NOT FIT. To turn, cheapest first:')
        for line in _advice(record):
            print(f'  {line}')
        return
    if record['remat']:
        more = record['flops'] / record['network_flops'] - 1
        print(f'recomputation   of blocks in the backward pass: {more:+.0%} operations')
    print(
        f'operations      {record["flops"]:.3e} a core ({record["network_flops"]:.3e} the network)'
    )
    print(f'memory traffic  {record["bytes"] / 1e9:.1f} GB a core')
    bound = record['bound_seconds']
    told = f'; {1e3 * bound:.1f} ms if every operation ran at a peak' if bound else ''
    print(
        f'step time       {1e3 * record["seconds"]:.1f} ms expected by the compiler, collectives '
        f'not included{told}'
    )
    silent = record['unestimated']
    print(
        f'                not in it: {silent["count"]} operations without an estimate, with '
        f'{silent["bytes"] / 1e6:.1f} MB of results'
    )
    told = f' (bound {100 * record["bound_share_of_peak"]:.1f}%)' if bound else ''
    print(
        f'                {record["images_per_second"]:.0f} images/s, '
        f"{100 * record['share_of_peak']:.1f}% of the cores' bfloat16 peak{told}"
    )
    for place, total in record['collectives'].items():
        print(f'collectives     {place}: {total["count"]}, {total["bytes"] / 2**20:.2f} MiB')


def _advice(record: dict[str, Any]) -> list[str]:
    """What makes a step smaller that is not turned yet."""
    images, pieces = record['images_a_core'], record['accumulate_steps']
    if record['step'] == 'eval' and images > 1:
        fewer = record['cores'] * (images // 2)
        return [f'--global_batch={fewer} (--config.eval.batch_size)']
    lines = []
    if not record['remat'] and record['step'] == 'train':
        lines.append('--config.train.remat=True: recompute blocks in the backward pass')
    if images > pieces and record['step'] == 'train':
        lines.append(
            f'--config.optim.accumulate_steps={2 * pieces}: the batch in {2 * pieces} parts; batch '
            'norm sees one part at a time'
        )
        lines.append(f'--config.train.batch_size={record["global_batch"] // 2}, or more cores')
    return lines or ['smaller images, or a chip with more memory']


def _print_costliest(found: list[Any], record: dict[str, Any]) -> None:
    """The costliest operations, and where the time goes by module of the network."""
    if not FLAGS.costliest:
        return
    total = sum(o.cycles for o in found) or 1
    print('costliest operations (share of time, ms, what, result):')
    for o in sorted(found, key=lambda o: -o.cycles)[: FLAGS.costliest]:
        ms = 1e3 * o.cycles / record['core']['clock']
        print(f'  {100 * o.cycles / total:5.1f}% {ms:8.3f}  {o.source[-90:]}  {o.output[:60]}')
    kinds: collections.Counter[str] = collections.Counter()
    for o in found:
        kinds[o.kind] += o.cycles
    print('by kind: ' + ', '.join(f'{k} {100 * v / total:.1f}%' for k, v in kinds.most_common(6)))


if __name__ == '__main__':
    define_flags()
    launch.run(main)

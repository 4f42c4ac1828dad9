"""Compares the programs that two checkouts hand to the compiler, as StableHLO text.

python tools/maintenance/compare_lowering.py --before=../other_checkout --out=/somewhere

A change of structure must not change what is computed. For every case below, the training forward
and its gradient (or the forward pass of inference) is lowered, not compiled, in both checkouts, and
the texts are compared line by line. Function names are replaced by numbers, in order of appearance,
as they follow names in the Python source. Exit status 1: a case differs. Takes minutes.
"""

import argparse
import difflib
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POLICIES = ('plain', 'cpu', 'tpu_v3', 'tpu')
NARROW = {
    'width': 0.125,
    'endpoint_channels': 16,
    'head_channels': 16,
    'head_convs': 2,
    'num_classes': 5,
}
DROPS = {'stochastic_depth': 0.2, 'dropblock_keep_prob': 0.9}
RESNET = {'backbone': 'resnet_fpn', 'depth': 50}
# (name, changes of the model part, image size, images a device, other options)
CASES = (
    ('full_width', {}, (640, 640), 2, {}),
    ('narrow', NARROW, (128, 128), 2, {}),
    ('tf1', {**NARROW, 'padding': 'symmetric', 'pooling': 'single'}, (128, 256), 1, {}),
    ('symmetric_chain', {**NARROW, 'padding': 'symmetric'}, (256, 128), 3, {}),
    ('single', {**NARROW, 'pooling': 'single'}, (224, 320), 2, {}),
    ('odd', NARROW, (97, 321), 1, {}),
    ('odd_tf1', {**NARROW, 'padding': 'symmetric', 'pooling': 'single'}, (300, 420), 2, {}),
    ('tiny', NARROW, (5, 16), 1, {}),
    ('remat', NARROW, (128, 128), 2, {'remat': True}),
    ('drops', {**NARROW, **DROPS}, (96, 160), 2, {}),
    ('drops_remat', {**NARROW, **DROPS}, (96, 160), 2, {'remat': True}),
    ('repeats_swish', {**NARROW, 'block_repeats': 2, 'activation': 'swish'}, (100, 84), 2, {}),
    ('r0_sp53', {**NARROW, 'graph': 'r0_sp53'}, (128, 128), 2, {}),
    ('large_batch', NARROW, (64, 64), 8, {}),
    ('inference', NARROW, (128, 128), 2, {'train': False}),
    ('resnet', {**NARROW, **RESNET}, (128, 128), 2, {}),
    ('resnet_drops', {**NARROW, **RESNET, **DROPS}, (96, 160), 1, {'remat': True}),
    ('resnet_odd', {**NARROW, **RESNET, 'padding': 'symmetric'}, (97, 132), 2, {}),
    ('resnet_full_width', RESNET, (640, 640), 2, {}),
    ('classifier', NARROW, (224, 224), 4, {'task': 'classification'}),
    ('classifier_resnet', {**NARROW, **RESNET}, (224, 224), 4, {'task': 'classification'}),
)


def build(model, task, policy, remat):
    """The model of the checkout that Python imports from, formulated for `policy`."""
    from spinenet_jax.models.build import build_model

    try:
        from spinenet_jax.lowering import policy as policies
    except ImportError:  # up to 77dceaf a platform's name took the place of the policy
        platform = {'plain': 'gpu'}.get(policy, policy)
        return build_model(model, 'batch', task, platform, remat)
    policy = {p.name: p for p in vars(policies).values() if isinstance(p, policies.Policy)}[policy]
    return build_model(model, task=task, axis_name='batch', policy=policy, remat=remat)


def lowered(changes, size, batch, policy, train=True, task='detection', remat=False):
    """StableHLO of value and gradient (or of inference) on one device, as text."""
    import jax
    import jax.numpy as jnp

    from configs import common

    config = common.get_config()
    config.model.update({'dtype': 'bfloat16' if 'tpu' in policy else 'float32', **changes})
    model = build(config.model, task, policy, remat)
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    def loss(params, stats, images, key):
        out, updates = model.apply(
            {'params': params, 'batch_stats': stats},
            images,
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': key},
        )
        # Every value with a weight of its own, so that no gradient is a constant.
        return sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in jax.tree.leaves(out)), updates

    def infer(params, stats, images, key):
        del key
        return model.apply({'params': params, 'batch_stats': stats}, images, train=False)

    run = jax.value_and_grad(loss, has_aux=True) if train else infer
    arguments = (variables['params'], variables['batch_stats'], images, jax.random.key(0))
    batched = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype),
        jax.eval_shape(lambda *a: a, *arguments),
    )
    text = jax.pmap(run, 'batch', devices=jax.devices()[:1]).lower(*batched).as_text()
    names = {}
    return re.sub(r'@"?[\w.$-]+"?', lambda m: names.setdefault(m[0], f'@f{len(names)}'), text)


def write(folder, only):
    """Write all cases of the checkout that Python imports from into `folder`."""
    for name, changes, size, batch, options in CASES:
        for policy in POLICIES:
            path = folder / f'{name}.{policy}.txt'
            if re.fullmatch(only, path.stem) and not path.exists():
                path.write_text(lowered(changes, size, batch, policy, **options))
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
                print(f'{digest} {path.stem}', flush=True)


def compare(before, after):
    """Print which cases are identical; True if all are."""
    same = True
    for path in sorted(after.glob('*.txt')):
        old, new = (before / path.name).read_text().splitlines(), path.read_text().splitlines()
        changed = [] if old == new else list(difflib.unified_diff(old, new, n=0, lineterm=''))[2:]
        same &= not changed
        print(f'{path.stem}: ' + (f'{len(changed)} lines differ' if changed else 'identical'))
    return same


def main():
    """Lower in both checkouts and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--before', type=Path, help='the other checkout')
    parser.add_argument('--out', type=Path, required=True, help='folder for the texts')
    parser.add_argument('--only', default='.*', help="cases, as a pattern: 'resnet.*[.]tpu'")
    parser.add_argument('--write', action='store_true', help='write the texts of one checkout only')
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.write:
        write(options.out, options.only)
        return 0
    for name, checkout in (('before', options.before.resolve()), ('after', ROOT)):
        subprocess.run(
            [
                sys.executable,
                __file__,
                '--write',
                f'--out={options.out / name}',
                f'--only={options.only}',
            ],
            env={**os.environ, 'PYTHONPATH': str(checkout), 'JAX_PLATFORMS': 'cpu'},
            check=True,
        )
    return 0 if compare(options.out / 'before', options.out / 'after') else 1


if __name__ == '__main__':
    sys.exit(main())

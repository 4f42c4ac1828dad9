"""Writes weights of ours as a checkpoint of the Model Garden's detectors (object-based TF2).

    SPINENET_ORACLE_PYTHON tools/maintenance/oracle_export.py WEIGHTS.npz MODEL.json PREFIX

Called by tools/convert_checkpoint.py --to=tf2, in the oracle's environment. WEIGHTS.npz holds
{our path: array}; MODEL.json the `model` part of the config, 'image_size' and 'task'.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np


def main(weights: str, model_json: str, prefix: str) -> None:
    """Builds the Garden's model, fills it and saves its checkpoint items."""
    import oracle_garden as garden
    import oracle_regions as regions
    import tensorflow as tf

    model = json.loads(pathlib.Path(model_json).read_text())
    size = tuple(model['image_size'])
    if model['task'] == 'instance_segmentation':
        _, network = regions.build(model, size, few=False)
        named = regions.variables(network, model)
    else:
        _, network = garden.build(model, size)
        named = garden.variables(network, model)
    with np.load(weights) as arrays:
        if set(arrays.files) != set(named):
            raise SystemExit(f'weights differ: {sorted(set(arrays.files) ^ set(named))[:5]}')
        for path, variable in named.items():
            variable.assign(garden.in_their_order(path, arrays[path]))
    items = tf.train.Checkpoint(**network.checkpoint_items)
    print(items.write(prefix))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ('weights', 'model_json', 'prefix'):
        parser.add_argument(name)
    main(**vars(parser.parse_args()))

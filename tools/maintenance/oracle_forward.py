"""Runs the Model Garden on one image, for tests/convert/test_oracle.py.

    ORACLE tools/maintenance/oracle_forward.py NAME SIDE SEED FOLDER

NAME is a published model (`oracle_cases.FULL`): gets random weights of SEED, which are saved as a
checkpoint in FOLDER/saved. Or it is a JSON file of a model with 'image_size', whose checkpoint
FOLDER/tf2/ckpt is read. FOLDER/outputs.npz gets features, head outputs and the 100 detections.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
import oracle_cases as cases


def temper(network: object, images: np.ndarray) -> None:
    """Scales the predictors so that outputs spread as a trained model's: no saturated scores."""
    import oracle_garden as garden

    outputs = garden.forward(network, images)

    def deviations(kind: str) -> np.ndarray:
        values = [outputs[f'{kind}{level}'].ravel() for level in garden.LEVELS]
        values = np.concatenate(values)
        return values - np.median(values)

    classifier, regressor = (
        layer.pointwise_kernel if hasattr(layer, 'pointwise_kernel') else layer.kernel
        for layer in (network.head._classifier, network.head._box_regressor)
    )
    classifier.assign(classifier * (8.0 / deviations('logits').max()))  # best score about 0.99
    regressor.assign(regressor * (0.3 / deviations('codes').std()))


def main(name: str, side: str, seed: str, folder: str) -> None:
    """Builds, fills, saves or loads, runs."""
    import oracle_garden as garden
    import tensorflow as tf
    import tf_keras

    published = name in cases.FULL
    if published:
        model, size = cases.model(**cases.FULL[name]), (int(side), int(side))
    else:
        model = json.loads(pathlib.Path(name).read_text())
        size = tuple(model['image_size'])
    _, network = garden.build(model, size)
    if published:
        draw = functools.partial(cases.weight, seed=int(seed))
        garden.assign_random(network, model, draw)
        temper(network, cases.normalised(cases.images('full', 1, size, int(seed))))
        items = {**network.checkpoint_items, 'global_step': tf.Variable(7)}
        if name != '190':  # momentum would double its 650 MB
            items['optimizer'] = tf_keras.optimizers.SGD(0.1, momentum=0.9)
            items['optimizer'].build(network.trainable_variables)
        tf.train.Checkpoint(**items).write(f'{folder}/saved/ckpt-7')
    else:
        items = tf.train.Checkpoint(**network.checkpoint_items)
        items.read(f'{folder}/tf2/ckpt').assert_consumed()
    images = cases.normalised(cases.images('full', 1, size, int(seed)))
    outputs = garden.forward(network, images)
    found = network(images, image_shape=tf.constant([size], tf.float32), training=False)
    for key in ('detection_boxes', 'detection_scores', 'detection_classes', 'num_detections'):
        outputs[key] = found[key].numpy()
    np.savez(f'{folder}/outputs.npz', **outputs)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for argument in ('name', 'side', 'seed', 'folder'):
        parser.add_argument(argument)
    main(**vars(parser.parse_args()))

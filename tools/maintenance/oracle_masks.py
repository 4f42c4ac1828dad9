"""Runs the Model Garden's Mask R-CNN on one image, for tests/convert/test_oracle.py.

    ORACLE tools/maintenance/oracle_masks.py SIDE SEED FOLDER

The published SpineNet-49 gets random weights of SEED, which are saved as a checkpoint in
FOLDER/saved. FOLDER/outputs.npz gets what every stage computes, the 100 detections, and their masks
at image size.
"""

import argparse
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
import oracle_cases as cases


def main(side: str, seed: str, folder: str) -> None:
    """Builds, fills, saves, runs."""
    import oracle_regions as regions
    import tensorflow as tf

    size = (int(side), int(side))
    _, network = regions.build(cases.FULL_MASK_RCNN, size, few=False)
    draw = functools.partial(cases.full_region_weight, seed=int(seed))
    regions.assign_random(network, cases.FULL_MASK_RCNN, draw)
    items = {**network.checkpoint_items, 'global_step': tf.Variable(7)}
    tf.train.Checkpoint(**items).write(f'{folder}/saved/ckpt-7')
    images = cases.normalised(cases.images('full', 1, size, int(seed)))
    outputs = regions.detect(network, images, masks=None)
    pasted = regions.paste(outputs['masks'][0], outputs['detection_boxes'][0], size)
    np.savez(f'{folder}/outputs.npz', **outputs, pasted=np.packbits(pasted, axis=-1))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for argument in ('side', 'seed', 'folder'):
        parser.add_argument(argument)
    main(**vars(parser.parse_args()))

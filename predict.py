"""Detects objects on your own photos, or names their classes.

    python predict.py --workdir=runs/digits --output=out/ photos/*.jpg

A detector writes a picture with boxes for each image, and predictions.json: COCO's format, each
annotation with a score. A classifier prints the five best classes of each image, and writes them
to predictions.json. Files that predict.py did not make are never written over.
"""

import collections
import signal
import sys

from absl import flags

from spinenet_jax import launch

_IMAGES = flags.DEFINE_multi_string(
    'images', [], 'File, glob or folder; may be given often, also without --images.'
)
_OUTPUT = flags.DEFINE_string('output', 'predictions', 'Folder for pictures and JSON.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, latest, or a step.')
_SCORE = flags.DEFINE_float('score', 0.3, 'Lowest score to draw; the JSON holds all.', 0.0, 1.0)


def main(arguments: list[str]) -> None:
    """Finds the images, loads the model, writes what it sees."""
    import jax
    from absl import logging

    from spinenet_jax import inference, prediction
    from spinenet_jax.errors import UserError
    from spinenet_jax.prediction_files import PredictionFolder

    patterns = [*_IMAGES.value, *arguments]
    if not patterns:
        raise UserError("--images is missing: give a file, a glob such as 'a/*.jpg', or a folder")
    paths = prediction.find_images(patterns)
    folder = PredictionFolder(_OUTPUT.value, paths)
    launch.start_jax()
    trained = inference.load_trained(flags.FLAGS.config, flags.FLAGS.workdir, _CHECKPOINT.value)
    names = {c.label: c.name for c in trained.categories}
    records = trained.task.records(trained.categories)
    logging.info('%d images; compiling the model, which may take a minute', len(paths))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    predicted = prediction.predict(trained, paths)
    if jax.process_index() != 0:  # of several hosts, all take part and the first writes
        collections.deque(predicted, maxlen=0)
        return

    def draw(image, found):
        side = prediction.picture_side(image)
        return trained.task.picture(image, found, names, min_score=_SCORE.value, side=side)

    skipped = folder.write_all(predicted, len(paths), records, draw)
    parts = [f'{len(paths) - skipped} images, {skipped} skipped', records.summary(_SCORE.value)]
    files = 'pictures and predictions.json' if folder.pictures else 'predictions.json'
    print(f'{"; ".join(filter(None, parts))}: {files} in {_OUTPUT.value}')


if __name__ == '__main__':
    launch.define_flags(config_required=False)
    launch.check_folder('output')
    flags.adopt_module_key_flags(launch)
    launch.run(
        main,
        config_of_workdir=True,
        takes_arguments=True,
        out_of_memory=launch.OUT_OF_MEMORY_INFERENCE,
    )

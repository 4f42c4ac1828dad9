"""Detects objects on your own photos, or names their classes.

    python predict.py --workdir=runs/digits --images='photos/*.jpg' --output=out/

A detector writes a picture with boxes for each image, and predictions.json: COCO's format, each
annotation with a score. A classifier prints the five best classes of each image, and writes them
to predictions.json.
"""

import json
import sys

from absl import flags

from spinenet_jax import launch

_IMAGES = flags.DEFINE_multi_string('images', [], 'File, glob or folder; may be given often.')
_OUTPUT = flags.DEFINE_string('output', 'predictions', 'Folder for pictures and JSON.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, latest, or a step.')
_SCORE = flags.DEFINE_float('score', 0.3, 'Lowest score to draw; the JSON holds all.', 0.0, 1.0)


def main() -> None:
    """Finds the images, loads the model, writes what it sees."""
    import cv2
    from etils import epath
    from tqdm import tqdm

    from spinenet_jax import inference, prediction
    from spinenet_jax.errors import UserError

    if not _IMAGES.value:
        raise UserError("--images is missing: give a file, a glob such as 'a/*.jpg', or a folder")
    paths = prediction.find_images(_IMAGES.value)
    launch.start_jax()
    workdir = flags.FLAGS.workdir
    trained = inference.load_trained(flags.FLAGS.config, workdir, _CHECKPOINT.value)
    names = {c.label: c.name for c in trained.categories}
    records, pictures, skipped = trained.task.records(trained.categories), set(), 0
    output = epath.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    predicted = prediction.predict(trained, paths)
    for one in tqdm(predicted, total=len(paths), unit='image', disable=None):
        if one.image is None:
            tqdm.write(f'skipped {one.path}: {one.problem}', file=sys.stderr)
            skipped += 1
            continue
        line = records.add(one.path, one.image.shape[:2], one.found)
        if line:
            tqdm.write(line)
        side = prediction.picture_side(one.image)
        drawn = trained.task.picture(one.image, one.found, names, min_score=_SCORE.value, side=side)
        if drawn is not None:
            encoded = cv2.imencode('.jpg', drawn[..., ::-1])[1].tobytes()
            (output / prediction.picture_name(one.path, pictures)).write_bytes(encoded)
    (output / 'predictions.json').write_text(json.dumps(records.as_dict))
    parts = [f'{len(paths) - skipped} images, {skipped} skipped', records.summary(_SCORE.value)]
    files = 'pictures and predictions.json' if pictures else 'predictions.json'
    print(f'{"; ".join(filter(None, parts))}: {files} in {output}')


if __name__ == '__main__':
    launch.define_flags(config_required=False)
    flags.adopt_module_key_flags(launch)
    launch.run(main, config_of_workdir=True)

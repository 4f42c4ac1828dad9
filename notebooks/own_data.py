# %% [markdown]
# # Your own data
#
# From a folder of annotated images to a fine-tuned detector: a look at the data, training from
# weights that are there, evaluation, and the worst mistakes as pictures. About ten minutes on a CPU
# runtime with the small set that this notebook makes.

# %% tags=["parameters"]
small = False  # True: a run of a few steps, whose detections are of no use
data = ''  # @param {type: "string"}
# The folder of your data; '' makes a set of letters, 24 images to train on and 12 to score.

# %% [markdown]
# ## The data
#
# COCO's format: one JSON file a split, with images, annotations and categories.
#
# ```
# <data>/annotations/instances_train.json
# <data>/annotations/instances_val.json
# <data>/train/*.jpg
# <data>/val/*.jpg
# ```
#
# CVAT, Label Studio, LabelMe (`labelme2coco`) and VIA export it. `supervision` converts YOLO and
# Pascal VOC folders; [docs/own_data.md](../docs/own_data.md) shows how.

# %%
from pathlib import Path

data = data or 'letters'
# !test -d {data} || python tools/make_letters.py --output={data}
print(sorted(path.name for path in Path(data).iterdir()))

# %% [markdown]
# Look before you train: boxes that are off, classes that are rare, objects of a few pixels.

# %%
# !python tools/check_data.py --root={data} --split=train --output=check
from IPython.display import Image, display

for picture in sorted(Path('check').glob('*.png')) + sorted(Path('check').glob('*.jpg')):
    display(Image(filename=str(picture), width=900))

# %% [markdown]
# ## Weights to start from
#
# Best are published weights: convert a checkpoint once, as
# [weights_and_classification.ipynb](weights_and_classification.ipynb) shows, and it is taken here.
# Otherwise a run of ours on handwritten digits, from [quickstart.ipynb](quickstart.ipynb) or made
# now.

# %%
from spinenet_jax import notebook

start = next((run for run in ('runs/49-tf1', 'runs/digits') if Path(run).exists()), '')
if not start:
    start = 'runs/digits'
    settings = (
        '--config.data.image_size="(64,64)" --config.model.width=0.125 --config.model.head_convs=1 '
        '--config.model.endpoint_channels=16 --config.model.head_channels=16 '
        '--config.train.epochs=0.4 --config.eval.batch_size=50'
        if small
        else ''
    )
    notebook.train(f'python train.py --config=configs/digits.py --workdir={start} {settings}')
print(start)

# %% [markdown]
# ## Fine-tuning
#
# The number of classes comes from the data. A small set gets enough steps by itself
# (`train.min_steps`).

# %%
settings = (
    '--config.train.min_steps=20 --config.train.epochs=1 --config.optim.min_warmup_steps=2 '
    '--config.train.log_every_steps=5'
    if small
    else '--config.data.flip=False'  # a mirrored letter is none
)
notebook.train(
    f'python train.py --config=configs/finetune.py:{start} --workdir=runs/mine '
    f'--config.data.root={data} --config.data.train_split=train --config.data.eval_split=val '
    f'{settings}'
)

# %% [markdown]
# ## Evaluation

# %%
# !python eval.py --workdir=runs/mine

# %% [markdown]
# ## The worst mistakes
#
# For each image, the certain detections that lie on no object of their class, and the objects that
# nothing was found on. The images with most of them come first, ground truth on the left.

# %%
import json

import numpy as np

import spinenet_jax
from spinenet_jax.ops.boxes import iou
from spinenet_jax.visualize import draw_detections

model = spinenet_jax.load('runs/mine')
truth = json.loads(Path(data, 'annotations/instances_val.json').read_text())
names = {category['id']: category['name'] for category in truth['categories']}
images = truth['images'][:50]
photos = [Path(data, 'val', image['file_name']) for image in images]
found = model.predict(photos)
score = 0.3  # @param {type: "slider", min: 0.05, max: 0.95, step: 0.05}


def objects_of(image):
    """Boxes (ymin, xmin, ymax, xmax) and class names of the ground truth."""
    objects = [a for a in truth['annotations'] if a['image_id'] == image['id']]
    x, y, width, height = np.array([a['bbox'] for a in objects], float).reshape(-1, 4).T
    return np.stack([y, x, y + height, x + width], 1), [names[a['category_id']] for a in objects]


def mistakes(image, result):
    """The number of false detections and of missed objects."""
    boxes, classes = objects_of(image)
    sure = result.scores >= score
    overlap = np.asarray(iou(result.boxes[sure], boxes.astype(np.float32)))
    same = np.array(
        [[a == b for b in classes] for a, s in zip(result.names, sure, strict=True) if s]
    )
    hits = (overlap >= 0.5) & same.reshape(overlap.shape).astype(bool)
    return int((~hits.any(1)).sum() + (~hits.any(0)).sum())


worst = sorted(range(len(images)), key=lambda n: -mistakes(images[n], found[n]))[:4]
pictures = []
for n in worst:
    boxes, classes = objects_of(images[n])
    labels = [1 + model.class_names.index(name) for name in classes]
    truth_only = model.draw(photos[n], found[n], min_score=2.0)  # nothing is as certain as that
    scale = truth_only.shape[0] / images[n]['height']
    pictures.append(draw_detections(truth_only, boxes * scale, labels, names=classes))
    pictures.append(model.draw(photos[n], found[n], min_score=score))
notebook.show(pictures, columns=2, titles=('annotated', 'found'))

# %% [markdown]
# ## Take it with you
#
# From uint8 images to boxes in one file that needs JAX alone; SavedModel and TFLite are other values
# of `--format` ([docs/export.md](../docs/export.md)). The file is run and compared with the model
# before the folder appears.

# %%
# !test -d exported || python export.py --workdir=runs/mine --format=stablehlo --platforms=cpu --output=exported
print(sorted(path.name for path in Path('exported').iterdir()))

# %% [markdown]
# Pictures of validation images at every evaluation are in `runs/mine/pictures`. On Colab, what is
# not copied to a drive is lost with the session: keep `runs/mine`.

# %% [markdown]
# # Weights and classification
#
# What a checkpoint holds and how to read it with Orbax alone; the feature pyramid as pictures; a
# checkpoint in the format of the TensorFlow release, converted; a classifier, and its backbone moved
# into a detector. About ten minutes on a CPU runtime.

# %% tags=["parameters"]
small = False  # True: runs of seconds, whose results are of no use

# %% [markdown]
# ## A checkpoint, by hand
#
# The run of [quickstart.ipynb](quickstart.ipynb), or one made now.

# %%
from pathlib import Path

from spinenet_jax import notebook

narrow = (
    '--config.data.image_size="(64,64)" --config.model.width=0.125 --config.model.head_convs=1 '
    '--config.model.endpoint_channels=16 --config.model.head_channels=16 '
    '--config.train.epochs=0.4 --config.eval.batch_size=50'
)
run = 'runs/digits'
if not Path(run, 'results.json').exists():
    settings = narrow if small else ''
    notebook.train(f'python train.py --config=configs/digits.py --workdir={run} {settings}')

# %% [markdown]
# A checkpoint has the item `model`, a tree of arrays. Orbax restores it without any of our code; the
# paths of the parameters are the names of the modules.

# %%
import jax
import orbax.checkpoint as ocp

steps = [int(path.name) for path in Path(run, 'checkpoints').iterdir() if path.name.isdigit()]
folder = Path(run, 'checkpoints', str(max(steps)), 'model').resolve()
with ocp.StandardCheckpointer() as checkpointer:
    variables = checkpointer.restore(folder)
leaves = jax.tree_util.tree_leaves_with_path(variables['params']['class_head'])
for path, array in leaves[:6]:
    print(jax.tree_util.keystr(path, simple=True, separator='/'), array.shape)

# %% [markdown]
# The model is a Flax module built from the config in the workdir.

# %%
import jax.numpy as jnp

from spinenet_jax.inference import read_config
from spinenet_jax.models.build import build_model

config = read_config(run)
model = build_model(config.model, task=config.task, axis_name=None)
images = jnp.zeros((1, *config.data.image_size, 3))  # normalised: zero is the mean colour
logits, codes = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
print([x.shape for x in logits])

# %% [markdown]
# ## The feature pyramid
#
# `features` scales and normalises an image as evaluation does. Each picture is the mean size of a
# level's channels, brighter where it is larger.

# %%
import cv2
import numpy as np

import spinenet_jax
from spinenet_jax.data.digits import ensure_digits

detector = spinenet_jax.load(run)
photo = sorted(Path(ensure_digits(), 'val').glob('*.jpg'))[2]
pyramid = detector.features(photo)
pictures = []
for maps in pyramid.values():
    strength = np.abs(maps).mean(-1)
    grey = np.uint8(255 * strength / max(strength.max(), 1e-9))
    pictures.append(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)[..., ::-1])
notebook.show(pictures, columns=5, titles=[f'P{level}' for level in pyramid])

# %% [markdown]
# ## Published weights
#
# The converter reads what the TF1 TPU repository and the TF2 Model Garden have published, without
# TensorFlow. [docs/models.md](../docs/models.md) lists the archives; with one downloaded:
#
# ```
# python tools/convert_checkpoint.py --source=spinenet49.tar.gz --workdir=runs/49-tf1 \
#     --config=configs/retinanet.py:49-B
# ```
#
# The workdir is then one like any other: `spinenet_jax.load('runs/49-tf1')`, `eval.py`, `predict.py`,
# fine-tuning. Here with the small checkpoint of random weights that the tests use, which the original
# code has written.

# %%
# !test -d runs/tf1 || python tools/convert_checkpoint.py --source=tests/goldens/tf1_retinanet --workdir=runs/tf1
print(spinenet_jax.load('runs/tf1'))

# %% [markdown]
# ## Classification
#
# The same backbone with one linear layer, on the scans of digits that come with scikit-learn.

# %%
settings = (
    '--config.data.image_size="(32,32)" --config.model.width=0.125 --config.train.epochs=0.5 '
    '--config.model.endpoint_channels=16'
    if small
    else ''
)
notebook.train(
    'python train.py --config=configs/classification.py:digits-49S --workdir=runs/digit-scans '
    + settings
)

# %%
from sklearn.datasets import load_digits

scans = load_digits().images[:6]
scans = [np.repeat(np.uint8(scan * 15.9)[..., None], 3, axis=-1) for scan in scans]
classifier = spinenet_jax.load('runs/digit-scans')
found = classifier.predict(scans)
notebook.show([classifier.draw(*pair) for pair in zip(scans, found, strict=True)], columns=6)
found[0]

# %% [markdown]
# ## From a classifier to a detector
#
# `train.init_from` takes whatever fits by name and shape: of a classifier, the whole backbone, where
# the detector has the same widths. The log lists what was taken and what starts anew.

# %%
if small:
    settings = narrow
else:
    shape = read_config('runs/digit-scans').model
    settings = (
        f'--config.model.width={shape.width} --config.model.resample_alpha={shape.resample_alpha} '
        f'--config.model.endpoint_channels={shape.endpoint_channels} --config.train.epochs=2'
    )
notebook.train(
    'python train.py --config=configs/digits.py --workdir=runs/from-classifier '
    f'--config.train.init_from=runs/digit-scans {settings}'
)
# !grep -A4 "starting from" runs/from-classifier/train.log

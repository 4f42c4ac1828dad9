# %% [markdown]
# # SpineNet in JAX: quick start
#
# Trains a small SpineNet detector on an embedded data set of handwritten digits, detects with it,
# and shows what it is made of. Nothing to download. About ten minutes on a CPU runtime, less on a
# GPU.

# %% tags=["parameters"]
small = False  # True: a run of seconds, whose detections are of no use

# %% [markdown]
# ## The architecture
#
# A SpineNet does not shrink its maps step by step: its blocks change scale in an order that a search
# found, and each has two parents. The drawing comes from the table that the model is built from.

# %%
from IPython.display import SVG, display

from spinenet_jax.models import graph
from spinenet_jax.search import drawing

display(SVG(drawing.svg(graph.load('spinenet49'))))

# %% [markdown]
# Parameters and multiply-adds of the parts of the full SpineNet-49 RetinaNet at 640 x 640, counted
# from the traced computation. Nothing is computed, so it takes seconds.

# %%
from configs import retinanet
from spinenet_jax.analysis import cost

print(cost.table(cost.config_cost(retinanet.get_config('49S-B' if small else '49-B'))))

# %% [markdown]
# ## Training
#
# A quarter of that width, on images of 128 x 128 pixels. The command is that of the README; any
# setting can be changed on it. Interrupt the cell to stop: the run saves, and the same command
# continues it.

# %%
from spinenet_jax import notebook

settings = (
    '--config.data.image_size="(64,64)" --config.model.width=0.125 --config.model.head_convs=1 '
    '--config.model.endpoint_channels=16 --config.model.head_channels=16 '
    '--config.train.epochs=0.4 --config.train.log_every_steps=10 --config.eval.batch_size=50'
    if small
    else ''
)
notebook.train(f'python train.py --config=configs/digits.py --workdir=runs/digits {settings}')

# %% [markdown]
# The workdir holds everything about the run; `results.json` has COCO's metrics of the last
# evaluation.

# %%
import json
from pathlib import Path

results = json.loads(Path('runs/digits/results.json').read_text())
print({name: round(results[name], 3) for name in ('AP', 'AP50', 'APs', 'APm', 'APl')})

# %% [markdown]
# ## Detection
#
# `load` takes the best checkpoint of a run. `predict` takes file names or numpy images.

# %%
import spinenet_jax
from spinenet_jax.data.digits import ensure_digits

model = spinenet_jax.load('runs/digits')
photos = sorted(Path(ensure_digits(), 'val').glob('*.jpg'))[:6]
found = model.predict(photos)
found[0]

# %%
score = 0.3  # @param {type: "slider", min: 0.05, max: 0.95, step: 0.05}
notebook.show([model.draw(p, f, min_score=score) for p, f in zip(photos, found, strict=True)])

# %% [markdown]
# Boxes are `(ymin, xmin, ymax, xmax)` in pixels of the image:

# %%
for box, name, confidence in zip(found[0].boxes, found[0].names, found[0].scores, strict=True):
    if confidence >= score:
        print(name, f'{confidence:.2f}', box.round(1))

# %% [markdown]
# Next: [your own data](own_data.ipynb).

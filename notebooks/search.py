# %% [markdown]
# # Architecture search
#
# The graph of SpineNet-49 was found by a search. This one is small: a controller proposes graphs,
# each is trained for two epochs on digits, and the best is drawn and trained. About half an hour on a
# CPU runtime; the paper took thousands of candidates on a hundred TPUs.

# %% tags=["parameters"]
small = False  # True: two candidates, whose scores mean nothing

# %% [markdown]
# ## The search
#
# `controller` is `ppo` (the paper's recurrent network, trained by reinforcement), `reinforce`,
# `evolution` or `random`. Every candidate is a process of its own, two at a time. Started again, the
# cell continues where it was.

# %%
controller = 'evolution'  # @param ["ppo", "reinforce", "evolution", "random"]
narrow = (
    '--config.candidate.data.image_size="(64,64)" --config.candidate.model.width=0.0625 '
    '--config.candidate.model.endpoint_channels=8 --config.candidate.model.head_channels=8 '
    '--config.candidate.model.head_convs=1 '
    '--config.candidate.train.epochs=0.1 --config.candidate.eval.batch_size=50'
)
settings = f'--config.search.candidates=2 {narrow}' if small else '--config.search.candidates=20'
# !python search.py --config=configs/search.py:digits --workdir=runs/search --config.search.controller={controller} {settings}

# %% [markdown]
# ## What it found
#
# The workdir's `search.md` has the rewards, the best graphs and what they have in common; a reward is
# the AP on images that are held out of training.

# %%
from pathlib import Path

from IPython.display import SVG, display

for picture in sorted(Path('runs/search/pictures').glob('reward*.svg')):
    display(SVG(filename=str(picture)))
print(Path('runs/search/search.md').read_text()[:1500])

# %% [markdown]
# The best graph, as text and drawn. `--config.model.graph` takes the file, or the text itself.

# %%
from spinenet_jax.models import graph
from spinenet_jax.search import drawing

best = graph.load('runs/search/best.json')
print(graph.to_text(best))
display(SVG(drawing.svg(best)))

# %% [markdown]
# ## Your own reward
#
# Anything that gives a number can be searched for: a function in a file of yours, called once a
# candidate. This one is the speed of the backbone on this machine; `proxy.evaluate(candidate)` would
# give the AP of the search above to weigh it with.

# %%
evaluator = """
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from spinenet_jax.models.build import build_backbone, build_layers
from spinenet_jax.models.graph import to_text


def images_per_second(candidate):
    config = ConfigDict(candidate.config)
    config.model.graph = to_text(candidate.graph)
    backbone = build_backbone(config.model, build_layers(config.model, axis_name=None))
    images = jnp.zeros((1, *config.data.image_size, 3))
    variables = jax.jit(lambda x: backbone.init(jax.random.key(0), x, train=False))(images)
    run = jax.jit(lambda x: [m.whole() for m in backbone.apply(variables, x, train=False).values()])
    jax.block_until_ready(run(images))
    began = time.perf_counter()
    for _ in range(20):
        jax.block_until_ready(run(images))
    return 20 / (time.perf_counter() - began)
"""
Path('runs/latency.py').write_text(evaluator)
settings = f'--config.search.candidates={1 if small else 20} {narrow if small else ""}'
# !PYTHONPATH=runs python search.py --config=configs/search.py:digits --workdir=runs/fast --evaluator=latency:images_per_second --config.search.workers=1 {settings}

# %% [markdown]
# ## The best graph, trained for longer

# %%
from spinenet_jax import notebook

settings = narrow.replace('.candidate', '') if small else ''
notebook.train(
    'python train.py --config=configs/digits.py --workdir=runs/found '
    f'--config.model.graph=runs/search/best.json {settings}'
)

# %% [markdown]
# Compare it with `runs/digits` of [quickstart.ipynb](quickstart.ipynb), which is SpineNet-49's graph
# at the same width, input and length. A difference of a few points of AP between two runs of this
# length is no more than chance. [docs/search.md](../docs/search.md) says how to search at scale.

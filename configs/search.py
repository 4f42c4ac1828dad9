"""Architecture search: configs/search.py:digits or configs/search.py:spinenet49-coco

    python search.py --config=configs/search.py:digits --workdir=runs/search
    python search.py --config=configs/search.py:spinenet49-coco --workdir=gs://bucket/search \
        --engine=ray --config.candidate.data.root=/data/coco

`config.search` says what is searched and how (spinenet_jax/search/settings.py has the table, with
sources); `config.candidate` is the config of every candidate's run, the proxy task. The controller
only needs to know which of two graphs is better, so a candidate is narrow and trained briefly.

digits: the scenes of configs/digits.py, rewarded on 300 that are held out of training. Hardware
assumed: two CPU cores. Results: not run.

<space>-coco: the paper's proxy task, width and alpha 0.25, heads of 64 channels, 512 x 512, five
epochs, rewarded on 7,392 images held out of train2017 (tools/hold_out.py writes the two
splits). Batch 64 and the schedule follow Google's public proxy config of ten epochs: rate 0.08, a
tenth of it after four fifths, 500 steps of warm-up. Hardware assumed: any number of single hosts
with TPUs or GPUs; the paper used 100 TPU v3. Result: not run.

<space> is one of spinenet_jax/search/space.py: spinenet49, r0_sp53, r14_sp39, r23_sp30, r35_sp18,
hourglass, fish.
"""

from ml_collections import ConfigDict

from configs import common, digits
from spinenet_jax.errors import UserError
from spinenet_jax.search.settings import default_search
from spinenet_jax.search.space import SPACES


def get_config(argument: str = 'digits') -> ConfigDict:
    """The config of 'digits', or of '<space>-coco'."""
    space, _, data = argument.rpartition('-')
    if argument != 'digits' and (data != 'coco' or space not in SPACES):
        raise UserError(
            f'configs/search.py:{argument}: the argument is digits or <space>-coco, with space one '
            f'of {", ".join(SPACES)}'
        )
    config = ConfigDict()
    config.search = default_search()
    if argument == 'digits':
        config.candidate = _digits()
        _search_digits(config.search)
    else:
        config.candidate = _coco()
        config.search.space = space
        config.search.candidates = 10_000
        config.search.time_limit_minutes = 240.0
    return config


def _digits() -> ConfigDict:
    """The proxy of configs/digits.py: half the width, 96 pixels, two epochs."""
    config = digits.get_config()
    config.model.width = 0.125
    config.model.resample_alpha = 0.5
    config.model.endpoint_channels = 24
    config.model.head_channels = 24
    config.model.head_convs = 1
    config.model.bn_momentum = 0.95
    # SpineNet-49 ends at AP 10 with this rate, at 0.6 with 0.1, and at 5 with 0.1 unclipped.
    config.optim.learning_rate = 0.3
    config.optim.warmup_epochs = 0.5
    config.data.train_split = 'train_kept'
    config.data.eval_split = 'train_held_out'
    config.data.image_size = (96, 96)
    config.train.epochs = 2.0
    config.train.eval_every_epochs = 0.0
    config.train.checkpoint_every_steps = 0
    config.eval.pictures = 0
    return config


def _search_digits(search: ConfigDict) -> None:
    search.candidates = 60
    search.workers = 2
    search.time_limit_minutes = 5.0
    search.learning_rate = 3.5e-3  # three updates are few
    search.population = 20
    search.tournament = 5


def _coco() -> ConfigDict:
    """The paper's proxy task."""
    config = common.get_config()
    config.model.width = 0.25
    config.model.resample_alpha = 0.25
    config.model.endpoint_channels = 64
    config.model.head_channels = 64
    config.data.train_split = 'train2017_kept'
    config.data.eval_split = 'train2017_held_out'
    config.data.image_size = (512, 512)
    config.train.batch_size = 64
    config.train.epochs = 5.0
    config.train.eval_every_epochs = 0.0
    config.train.checkpoint_every_steps = 2000  # a lost machine costs no more than this
    config.train.keep_checkpoints = 1
    config.optim.learning_rate = 0.08
    config.optim.learning_rate_batch = 64
    config.optim.warmup_epochs = 0.2885  # 500 steps
    config.optim.decay_epochs = (4.0,)
    config.eval.pictures = 0
    return config

"""A narrow SpineNet on the embedded data set of handwritten digits: RetinaNet, or Mask R-CNN.

python train.py --config=configs/digits.py --workdir=runs/digits
python train.py --config=configs/digits.py:masks --workdir=runs/masks

Hardware assumed: two CPU cores. Masks, four epochs, 500 steps, eight minutes: box AP 0.575, mask AP
0.523; after two of them 0.396 and 0.359. An earlier run: 0.568 and 0.502.
"""

from ml_collections import ConfigDict

from configs import common
from spinenet_jax.errors import UserError


def get_config(argument: str = 'boxes') -> ConfigDict:
    """A quarter of SpineNet-49's width, for two CPU cores; 'boxes' or 'masks'."""
    if argument not in ('boxes', 'masks'):
        raise UserError(f"configs/digits.py:{argument}: the argument is 'boxes' or 'masks'")
    config = common.get_config()

    config.model.width = 0.25
    config.model.resample_alpha = 0.5
    config.model.endpoint_channels = 48
    config.model.head_channels = 48
    config.model.head_convs = 2
    config.model.num_classes = 11
    config.model.bn_momentum = 0.97  # a run of a thousand steps
    config.model.dtype = 'float32'

    config.data.source = 'digits'
    config.data.train_split = 'train'
    config.data.eval_split = 'val'
    config.data.image_size = (128, 128)
    config.data.scale_min = 0.8
    config.data.scale_max = 1.25
    config.data.flip = False  # a mirrored digit is none
    config.data.max_boxes = 16

    config.train.batch_size = 16
    config.train.epochs = 7
    config.train.log_every_steps = 50
    config.train.checkpoint_every_steps = 250
    config.train.eval_every_epochs = 2

    config.optim.learning_rate = 0.1
    config.optim.learning_rate_batch = 16
    config.optim.schedule = 'cosine'
    # Without clipping and with half an epoch of warm-up, this run ended anywhere between AP 0.54
    # and 0.65 as the rounding of its arithmetic changed.
    config.optim.warmup_epochs = 1.0
    config.optim.clip_norm = 1.0
    config.optim.warmup_start_rate = 0.005

    config.eval.batch_size = 20
    config.eval.max_candidates = 500
    if argument == 'masks':
        _set_masks(config)
    return config


def _set_masks(config: ConfigDict) -> None:
    """Mask R-CNN with few regions: a scene has one to five digits."""
    config.task = 'instance_segmentation'
    # With gradients clipped to 1, as above, AP is 0.013 after two epochs, and 0.40 without.
    config.optim.warmup_epochs = 0.5
    config.optim.clip_norm = 0.0
    config.model.hidden_channels = 128
    config.train.epochs = 4
    config.train.max_proposals = 100
    config.train.regions = 32
    config.eval.max_proposals = 100

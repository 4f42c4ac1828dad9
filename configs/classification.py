"""Image classification from scratch: configs/classification.py:<dataset>-<model>[-best]

    python train.py --config=configs/classification.py:digits-49S --workdir=runs/digit-scans
    python train.py --config=configs/classification.py:imagenet-49-best --workdir=runs/imagenet \
        --config.data.root=/data/tfds

Datasets; --config.data.root is where they lie:
    imagenet          ILSVRC-2012, 1,000 classes; TFDS imagenet2012 (split 'validation')
    inaturalist       iNaturalist-2017, 5,089 classes; TFDS i_naturalist2017 (split 'validation')
    inaturalist_bbox  its annotated boxes, 2,854 classes; a folder that
                      tools/make_inaturalist_bbox.py has written
    digits            1,797 scans of digits that come with scikit-learn: nothing to download; 64
                      pixels, 12 epochs and 0.4 times the width, for two CPU cores
Any of the first three from a folder root/<split>/<class>/*.jpg instead:
    --config.data.source=image_folder --config.data.eval_split=val

Protocol (paper, "Training protocols"): 200 epochs, batch 4096, SGD 0.9, cosine to zero after 5
epochs of warm-up, random crops of 224x224 with scale and aspect, mirrored. Rate 1.6, weight decay
1e-4 (not on biases and batch norm), batch norm 0.9 and 1e-5, and the phase of the cosine, which
counts from the end of warm-up, are the TF1 release's. `best` adds stochastic depth 0.2, swish and
label smoothing 0.1. The rate follows --config.train.batch_size. Hardware assumed: the paper's
Cloud TPU v3. 4096 images do not fit on one chip: lower the batch, or cut it by
--config.optim.accumulate_steps.

Published top-1 / top-5 (TF1 model zoo, and * the paper), 224 pixels, and ours:

    model  ImageNet    best         iNaturalist  best         bbox          ours
    49S    -           -            -            -            -             not run
    49     77.0/93.3   78.1/94.0    59.3/81.9    63.3/85.1    63.9/86.9*    not run
    96     78.2/94.0   79.4/94.6    61.7/83.4    64.7/85.9    -             not run
    143    79.0/94.4   80.1/95.0    63.6/84.8    66.7/87.1    -             not run
    190    -           80.8/95.3    -            67.6/87.4    -             not run
    r50    77.1/93.6   -            54.6/77.2    -            59.6/83.3*    not run
    r101   78.2/94.2   -            57.0/79.3    -            -             not run
    r152   78.4/94.2   -            58.4/80.2    -            -             not run

Where we differ from the release:
  - batch norm takes its statistics over all devices (the paper's protocols synchronise it; the
    release's classification does not). With 4096 images the batches are larger than any it saw.
  - an epoch is rounded up to whole steps: 313 of 4096 make 62,600 in all, the release has 62,557.
  - images are resized with half-pixel centres; the release's resize has none.
  - padding and pooling are those of configs/retinanet.py, so that a backbone moves between the
    two. As the release: --config.model.padding=symmetric --config.model.pooling=single
"""

from ml_collections import ConfigDict

from configs import common
from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import SCALING

DATASETS = ('imagenet', 'inaturalist', 'inaturalist_bbox', 'digits')
RESNETS = {'r50': 50, 'r101': 101, 'r152': 152}
MODELS = (*SCALING, *RESNETS)


def get_config(argument: str = 'digits-49S') -> ConfigDict:
    """The config of '<dataset>-<model>[-best]'; UserError lists what there is."""
    dataset, _, model = argument.removesuffix('-best').partition('-')
    if dataset not in DATASETS or model not in MODELS:
        raise UserError(
            f'configs/classification.py:{argument}: the argument is <dataset>-<model>[-best], with '
            f'dataset one of {", ".join(DATASETS)} and model one of {", ".join(MODELS)}'
        )
    config = common.get_config()
    config.task = 'classification'
    _set_model(config, model)
    _set_protocol(config)
    if argument.endswith('-best'):
        config.model.stochastic_depth = 0.2
        config.model.activation = 'swish'
        config.train.label_smoothing = 0.1
    _set_data(config, dataset)
    return config


def _set_model(config: ConfigDict, model: str) -> None:
    if model in RESNETS:
        config.model.backbone = 'resnet_fpn'  # without the pyramid: its last map is pooled
        config.model.depth = RESNETS[model]
    else:
        common.set_scaling(config, SCALING[model])
    config.model.bn_momentum = 0.9
    config.model.bn_epsilon = 1e-5


def _set_protocol(config: ConfigDict) -> None:
    config.data.image_size = (224, 224)
    config.train.batch_size = 4096
    config.train.epochs = 200
    config.optim.learning_rate = 1.6
    config.optim.learning_rate_batch = 4096
    config.optim.schedule = 'cosine'
    config.optim.warmup_epochs = 5.0
    config.optim.warmup_start_rate = 0.0
    config.optim.weight_decay = 1e-4
    config.eval.batch_size = 512
    config.eval.pictures = 0  # of boxes


def _set_data(config: ConfigDict, dataset: str) -> None:
    data = config.data
    data.train_split, data.eval_split = 'train', 'validation'
    if dataset == 'imagenet':
        data.source, data.tfds_name = 'tfds_labels', 'imagenet2012'
        config.model.num_classes = 1001  # with background, here and below
    elif dataset == 'inaturalist':
        data.source, data.tfds_name = 'tfds_labels', 'i_naturalist2017'
        config.model.num_classes = 5090
    elif dataset == 'inaturalist_bbox':
        data.source, data.eval_split = 'image_folder', 'val'
        config.model.num_classes = 2855
    else:
        _set_digits(config)


def _set_digits(config: ConfigDict) -> None:
    """Small images, 0.4 times the model's width and a short run, for two CPU cores."""
    config.model.width *= 0.4
    config.model.endpoint_channels = round(0.4 * config.model.endpoint_channels)
    config.model.num_classes = 11
    config.model.dtype = 'float32'
    config.data.source, config.data.eval_split = 'digit_scans', 'val'
    config.data.image_size = (64, 64)
    config.data.flip = False  # a mirrored digit is none
    config.data.crop_area_min = 0.6
    config.data.crop_aspect_min, config.data.crop_aspect_max = 0.8, 1.25
    config.data.eval_crop = 0.9
    config.train.batch_size = 64
    config.train.epochs = 12
    config.train.log_every_steps = 23
    config.train.checkpoint_every_steps = 230
    config.train.eval_every_epochs = 4
    config.optim.learning_rate = 0.1
    config.optim.learning_rate_batch = 64
    config.optim.warmup_epochs = 2.0
    config.eval.batch_size = 64

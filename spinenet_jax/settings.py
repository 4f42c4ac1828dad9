"""The table of all settings: default, legal values and meaning of every field of a config.

`configs/common.py` hands out the defaults, the files beside it change some, `check` holds a config
to the table once, when a script starts. A new setting is a new line here.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from spinenet_jax.errors import UserError
from spinenet_jax.legal_values import (
    Legal,
    choice,
    expectations,
    number,
    numbers,
    pair_of_whole,
    switch,
    text,
    whole,
)

NARROWEST = 64  # filters of the narrowest blocks, before model.width
_LONGEST_VALUE = 60  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting; `meaning` is a comment to read beside its name."""

    default: Any
    legal: Legal
    meaning: str


# Rates, weight decay, momentum and warm-up are those of the paper (section "Training protocols",
# protocol B); the model is SpineNet-49.
TABLE: dict[str, Field | dict[str, Field]] = {
    'seed': Field(0, whole(0, 2**31 - 1), 'of weights, order of the data and augmentation'),
    'task': Field(
        'detection',
        choice('detection', 'instance_segmentation', 'classification'),
        'what is learned',
    ),
    'model': {
        'backbone': Field('spinenet', choice('spinenet', 'resnet_fpn'), 'kind of backbone'),
        'graph': Field(
            'spinenet49',
            text(empty=False),
            'wiring: a name, a path that ends in .json, or blocks as text; spinenet only',
        ),
        'depth': Field(50, choice(50, 101, 152), 'layers; resnet_fpn only'),
        'width': Field(1.0, number(0, 8, above=True), 'multiplies the filters of every block'),
        'resample_alpha': Field(
            0.5,
            number(0, 4, above=True),
            "width inside a resampling, as a share of the parent's; not mobile",
        ),
        'block_repeats': Field(1, whole(1, 100), 'copies of every block'),
        'endpoint_channels': Field(256, whole(1, 8192), 'channels of the feature pyramid'),
        'head_channels': Field(256, whole(1, 8192), 'channels of the heads'),
        'head_convs': Field(4, whole(0, 100), 'convolutions of a head before its predictor'),
        'separable_heads': Field(
            False, switch(), 'depthwise and 1x1 convolutions in the heads; not masks'
        ),
        'squeeze_gate': Field(
            'sigmoid',
            choice('sigmoid', 'hard_sigmoid'),
            'of squeeze-and-excite; hard_sigmoid: as the Model Garden; mobile only',
        ),
        'hidden_channels': Field(
            1024, whole(1, 2**16), "width of the box head's fully connected layer; masks only"
        ),
        'rpn_convs': Field(
            1, whole(0, 100), 'convolutions of the region proposal network; masks only'
        ),
        'cascade': Field(
            False, switch(), 'three box heads one after the other (Cascade R-CNN); masks only'
        ),
        'num_classes': Field(
            91, whole(0, 2**17), 'background, then labels from 1; 0: as many as the data has'
        ),
        'anchor_size': Field(
            3.0, number(0, 1000, above=True), 'side of the smallest anchor, in cells'
        ),
        'min_level': Field(3, whole(2, 7), 'finest level of the pyramid: 1/2**level of the image'),
        'max_level': Field(7, whole(2, 9), 'coarsest level of the pyramid'),
        'activation': Field('relu', choice('relu', 'swish'), 'after convolutions'),
        'stochastic_depth': Field(0.0, number(0, 1, below=True), 'rate of the last block; 0: off'),
        'dropblock_keep_prob': Field(
            1.0,
            number(0, 1, above=True),
            'share of activations that DropBlock keeps; 1: off; not mobile',
        ),
        'dropblock_size': Field(7, whole(1, 1000), "side of DropBlock's squares, in cells"),
        'padding': Field('same', choice('same', 'symmetric'), 'symmetric: as the TF1 release'),
        'pooling': Field(
            'chain', choice('chain', 'single'), 'single: as the TF1 release; not mobile'
        ),
        'bn_momentum': Field(0.99, number(0, 1, below=True), 'of the running statistics'),
        'bn_epsilon': Field(1e-3, number(0, 1, above=True), 'added to the variance'),
        'dtype': Field(
            'bfloat16',
            choice('float32', 'bfloat16'),
            'of the convolutions; parameters and losses are float32',
        ),
    },
    'data': {
        'source': Field(
            'coco',
            choice('coco', 'tfds', 'digits', 'image_folder', 'tfds_labels', 'digit_scans'),
            'kind of data set; the last three are for classification',
        ),
        'root': Field('', text(), 'folder of the data set'),
        'train_split': Field('train2017', text(empty=False), 'name of the split to train on'),
        'eval_split': Field('val2017', text(empty=False), 'name of the split to score'),
        'tfds_name': Field('coco/2017', text(empty=False), 'name of the data set in TFDS'),
        'annotations': Field('', text(), 'official JSON to evaluate against; tfds only'),
        'allow_outside_root': Field(
            False, switch(), 'whether file names in a JSON may lead out of data.root'
        ),
        'image_size': Field((640, 640), pair_of_whole(16, 8192), 'height, width of the input'),
        'max_pixels': Field(
            120_000_000, whole(1, 2**30), 'height x width; larger images are not decoded'
        ),
        'scale_min': Field(
            0.5, number(0, 100, above=True), 'smallest scale of a training image in image_size'
        ),
        'scale_max': Field(2.0, number(0, 100, above=True), 'largest scale; detection only'),
        'flip': Field(True, switch(), 'whether half of the training images are mirrored'),
        'max_boxes': Field(100, whole(1, 10_000), 'most boxes of an image, in training'),
        'crop_area_min': Field(
            0.08, number(0, 1, above=True), 'smallest share of an image that a training crop shows'
        ),
        'crop_area_max': Field(1.0, number(0, 1, above=True), 'largest; classification only'),
        'crop_aspect_min': Field(
            3 / 4, number(0, 100, above=True), 'smallest width over height of a training crop'
        ),
        'crop_aspect_max': Field(4 / 3, number(0, 100, above=True), 'largest; classification only'),
        'eval_crop': Field(
            0.875,
            number(0, 1, above=True),
            'share of the short side that evaluation sees; classification only',
        ),
        'num_threads': Field(
            0, whole(0, 1024), 'of each process that reads; 0: one a core, at most 16'
        ),
        'worker_count': Field(
            0, whole(0, 1024), 'processes that read; 0: none but this (docs/input_pipeline.md)'
        ),
    },
    'train': {
        'batch_size': Field(256, whole(1), 'images a step, over all devices'),
        'epochs': Field(350.0, number(0, 1e6, above=True), 'length; at least one step is made'),
        'min_steps': Field(
            0,
            whole(0, 2**31 - 1),
            'least length; where epochs give fewer, all that is counted in epochs is stretched',
        ),
        'log_every_steps': Field(100, whole(1, 2**31 - 1), 'steps between two lines of the log'),
        'checkpoint_every_steps': Field(
            1000, whole(0, 2**31 - 1), 'steps; 0: a checkpoint before every evaluation only'
        ),
        'keep_checkpoints': Field(2, whole(1), 'latest ones; the best is kept besides'),
        'eval_every_epochs': Field(10.0, number(0, 1e6), '0: after the last step only'),
        'label_smoothing': Field(
            0.0, number(0, 1, below=True), 'of the targets; classification only'
        ),
        'max_proposals': Field(
            1000, whole(1, 100_000), 'of an image, twice as many before suppression; masks only'
        ),
        'regions': Field(
            512, whole(4, 100_000), 'of an image that the heads learn from; masks only'
        ),
        'loss_counts': Field(
            'tf1',
            choice('tf1', 'tf2'),
            "tf2: what the Model Garden divides losses by, half of the proposals' score loss; "
            'masks only',
        ),
        'remat': Field(
            None,
            switch(undecided=True),
            'recompute blocks in the backward pass: less memory, more time; None: where needed',
        ),
        'init_from': Field('', text(), 'workdir or checkpoint to take fitting weights from'),
    },
    'optim': {
        'learning_rate': Field(
            0.28, number(0, 1000), 'for learning_rate_batch images; scaled with batch_size'
        ),
        'learning_rate_batch': Field(256, whole(1), 'images that learning_rate is meant for'),
        'schedule': Field('step', choice('step', 'cosine'), 'how the rate falls'),
        'warmup_epochs': Field(5.0, number(0, 1e6), 'linear, from warmup_start_rate'),
        'min_warmup_steps': Field(0, whole(0, 2**31 - 1), 'least length of the warm-up, in steps'),
        'warmup_start_rate': Field(0.0067, number(0, 1000), 'scaled as learning_rate is'),
        'decay_epochs': Field(
            (320.0, 340.0), numbers(0, 1e6, 1000), 'ends of the steps; step only'
        ),
        'decay_factor': Field(0.1, number(0, 1, above=True), 'of the rate at each of decay_epochs'),
        'momentum': Field(0.9, number(0, 1, below=True), 'of SGD'),
        'weight_decay': Field(4e-5, number(0, 1), 'of kernels only'),
        'clip_norm': Field(0.0, number(0, 1e6), 'largest norm of the gradient; 0: off'),
        'ema_decay': Field(
            0.0,
            number(0, 1, below=True),
            'of a moving average of the weights, which is evaluated and loaded; 0: off',
        ),
        'accumulate_steps': Field(1, whole(1, 10_000), 'micro-batches that a batch is cut into'),
    },
    'eval': {
        'batch_size': Field(32, whole(1), 'images a step, over all devices'),
        'score_threshold': Field(0.05, number(0, 1, below=True), 'detections score more'),
        'soft_nms_sigma': Field(
            0.0,
            number(0, 100),
            'of Soft-NMS, whose paper has 0.5, in place of nms_iou; 0: off',
        ),
        'nms_iou': Field(0.5, number(0, 1), 'largest overlap of two detections of a class'),
        'max_candidates': Field(5000, whole(1), 'of a class, before suppression'),
        'max_detections': Field(100, whole(1, 10_000), 'of an image'),
        'max_proposals': Field(1000, whole(1, 100_000), 'of an image; masks only'),
        'decode': Field(
            'plain',
            choice('plain', 'tf1'),
            'tf1: boxes as the TF1 release decodes them, sides a pixel longer; masks only',
        ),
        'pictures': Field(8, whole(0, 10_000), 'pictures with detections at every evaluation'),
        'expected': Field(
            ConfigDict(), expectations(), 'numbers that eval.py compares its own with'
        ),
    },
}


def default_config() -> ConfigDict:
    """A config with every field of the table at its default."""
    config = ConfigDict()
    for name, entry in TABLE.items():
        if isinstance(entry, Field):
            config[name] = _default(entry)
        else:
            config[name] = ConfigDict({key: _default(field) for key, field in entry.items()})
    return config


def fields() -> Iterator[tuple[str, Field]]:
    """Every field with its dotted name: 'seed', 'model.width'."""
    for name, entry in TABLE.items():
        if isinstance(entry, Field):
            yield name, entry
        else:
            yield from ((f'{name}.{key}', field) for key, field in entry.items())


def describe() -> str:
    """The table as text: a line with name and default, one with legal values and meaning."""
    lines = []
    for name, field in fields():
        default = (
            field.default.to_dict() if isinstance(field.default, ConfigDict) else field.default
        )
        lines += [f'{name} = {default!r}', f'    {field.meaning} ({field.legal.words})']
    return '\n'.join(lines)


def check(config: ConfigDict) -> None:
    """Holds a config to the table; to be called once, before anything is made of the config.

    Raises:
      UserError: one line that names the field, its value and what may stand there.
    """
    _check_names(config)
    for name, field in fields():
        value = _get(config, name)
        if not field.legal.allows(value):
            raise UserError(
                f'{name}={_shown(value)}: must be {field.legal.words} ({field.meaning})'
            )
    for problem in _contradictions(config):
        raise UserError(problem)


def remarks(config: ConfigDict) -> list[str]:
    """Lines on settings that are legal and will surprise whoever trains with them."""
    optim, epochs = config.optim, config.train.epochs
    lines = []
    if optim.warmup_epochs > epochs:
        lines.append(
            f'optim.warmup_epochs={optim.warmup_epochs:g} is longer than the whole training '
            f'(train.epochs={epochs:g}): the learning rate never reaches optim.learning_rate'
        )
    late = [f'{epoch:g}' for epoch in optim.decay_epochs if epoch >= epochs]
    if optim.schedule == 'step' and late:
        lines.append(
            f'optim.decay_epochs {", ".join(late)} lie at or beyond the end of training '
            f'(train.epochs={epochs:g}) and have no effect'
        )
    return lines


def from_saved(saved: Any, where: str) -> tuple[ConfigDict, str]:
    """A config that an earlier version may have written, over today's defaults.

    Args:
      saved: what stood in its JSON.
      where: the file's name, for messages.

    Returns:
      The config, and a line on what was filled in or ignored; '' if it has today's fields.

    Raises:
      UserError: not a config, or a value that the table does not allow.
    """
    if not isinstance(saved, dict) or not isinstance(saved.get('model'), dict):
        raise UserError(f'{where}: not the settings of a run: there is no section "model"')
    leaves, known, config = dict(_saved_leaves(saved, where)), dict(fields()), default_config()
    for name in (name for name in known if name in leaves):
        value, field = _with_tuples(leaves[name]), known[name]
        if not field.legal.allows(value):
            raise UserError(f'{where}: {name}={_shown(value)}: must be {field.legal.words}')
        section, _, key = name.rpartition('.')
        (config[section] if section else config)[key] = _as_default(value, field.default)
    missing = [f'{n}={_shown(_plain(known[n].default))}' for n in known if n not in leaves]
    unknown = [name for name in leaves if name not in known]
    parts = [
        f'{what} {", ".join(names)}'
        for what, names in (('filled in', missing), ('ignored', unknown))
        if names
    ]
    return config, f'{where} is of another version: {"; ".join(parts)}' if parts else ''


def _default(field: Field) -> Any:
    """A field's default in a form that a config can hold; None keeps its type open to flags."""
    if field.default is None:
        return config_dict.placeholder(bool)
    return ConfigDict() if isinstance(field.default, ConfigDict) else field.default


def _get(config: ConfigDict, name: str) -> Any:
    """The value of a dotted name."""
    section, _, key = name.rpartition('.')
    return (config[section] if section else config)[key]


def _check_names(config: Any) -> None:
    """UserError where a section or field is missing, or is none of the table."""
    if not isinstance(config, ConfigDict):
        raise UserError(f'the config is {_shown(config)}: must be a ConfigDict, as get_config()')
    known = [name for name, _ in fields()]
    found = []
    for name, value in config.items():
        if isinstance(TABLE.get(name), dict):
            if not isinstance(value, ConfigDict):
                raise UserError(f'{name}={_shown(value)}: must be a section of settings')
            found += [f'{name}.{key}' for key in value]
        else:
            found.append(name)
    for name in found:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f': did you mean {close[0]}?' if close else ''
            raise UserError(f'{name} is no setting{hint}')
    for name in known:
        if name not in found:
            raise UserError(f'{name} is missing in the config (copy configs/common.py)')


def _contradictions(config: ConfigDict) -> Iterator[str]:
    """Lines on fields that are legal one by one and not together."""
    model, data = config.model, config.data
    for section, low, high in (
        ('model', 'min_level', 'max_level'),
        ('data', 'scale_min', 'scale_max'),
        ('data', 'crop_area_min', 'crop_area_max'),
        ('data', 'crop_aspect_min', 'crop_aspect_max'),
    ):
        a, b = config[section][low], config[section][high]
        if a > b:
            yield f'{section}.{low}={a} and {section}.{high}={b}: the first must not be larger'
    filters = int(NARROWEST * model.width)
    if filters < 1:
        yield f'model.width={model.width:g}: must be at least 1/{NARROWEST}, for one filter a block'
    if model.backbone == 'spinenet':
        if int(filters * model.resample_alpha) < 1:
            yield (
                f'model.resample_alpha={model.resample_alpha:g} and model.width={model.width:g}: '
                f'too small, a resampling would have no channels'
            )
        if model.min_level < 3 or model.max_level > 7:
            yield (
                f'model.min_level={model.min_level} and model.max_level={model.max_level}: '
                'SpineNet has the levels 3 to 7'
            )
    elif model.min_level > 5:
        yield f'model.min_level={model.min_level}: must be at most 5 for a ResNet'
    if model.num_classes == 1:
        yield 'model.num_classes=1: must be 0 (taken from the data), or at least 2, with background'
    if data.source.startswith('tfds') and not data.tfds_name.strip('/. '):
        yield f'data.tfds_name={data.tfds_name!r}: must name a data set'


def _saved_leaves(saved: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a config's JSON."""
    for name, value in saved.items():
        if isinstance(value, dict):
            yield from ((f'{name}.{key}', inner) for key, inner in value.items())
        elif isinstance(TABLE.get(name), dict):
            raise UserError(f'{where}: {name}={_shown(value)}: must be a section of settings')
        else:
            yield name, value


def _as_default(value: Any, default: Any) -> Any:
    """A legal value in the type of the default: 350 was written where 350.0 stands today."""
    if isinstance(default, ConfigDict):
        return ConfigDict(value)
    return float(value) if isinstance(default, float) else value


def _with_tuples(value: Any) -> Any:
    """JSON writes tuples as lists; in a config they are tuples, as flags can change those only."""
    if isinstance(value, dict):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _shown(value: Any) -> str:
    """A value for a message of one line."""
    try:
        words = repr(_plain(value))
    except ValueError:  # a whole number of thousands of digits
        words = 'a number of too many digits'
    words = ' '.join(words.split())
    return words if len(words) <= _LONGEST_VALUE else words[: _LONGEST_VALUE - 3] + '...'

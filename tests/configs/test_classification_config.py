"""configs/classification.py against the published protocol, typed here a second time."""

import pytest

from configs import classification, common
from spinenet_jax.analysis.cost import Cost, model_cost
from spinenet_jax.data.build import SOURCES
from spinenet_jax.errors import UserError
from spinenet_jax.tasks.build import build_task, build_task_model
from spinenet_jax.training.optim import learning_rate_schedule, steps_per_epoch

# dataset: source, TFDS name, evaluation split, outputs with background
DATASETS = {
    'imagenet': ('tfds_labels', 'imagenet2012', 'validation', 1001),
    'inaturalist': ('tfds_labels', 'i_naturalist2017', 'validation', 5090),
    'inaturalist_bbox': ('image_folder', None, 'val', 2855),
    'digits': ('digit_scans', None, 'val', 11),
}
# model: width, alpha, repeats, endpoint channels
SPINENETS = {
    '49S': (0.65, 0.5, 1, 128),
    '49': (1.0, 0.5, 1, 256),
    '96': (1.0, 0.5, 2, 256),
    '143': (1.0, 1.0, 3, 256),
    '190': (1.3, 1.0, 4, 512),
}
RESNETS = {'r50': 50, 'r101': 101, 'r152': 152}
IMAGENET_IMAGES = 1_281_167
ARGUMENTS = [
    f'{d}-{m}{best}' for d in DATASETS for m in (*SPINENETS, *RESNETS) for best in ('', '-best')
]


def test_nothing_is_missing_from_the_tables():
    assert set(classification.DATASETS) == set(DATASETS)
    assert set(classification.MODELS) == {*SPINENETS, *RESNETS}


@pytest.mark.parametrize('argument', ARGUMENTS)
def test_config_is_the_published_one(argument):
    config = classification.get_config(argument)
    dataset, name = argument.removesuffix('-best').split('-')
    model, data = config.model, config.data
    source, tfds_name, split, classes = DATASETS[dataset]
    assert (data.source, data.eval_split, model.num_classes) == (source, split, classes)
    assert tfds_name in (None, data.tfds_name)
    narrow = 0.4 if dataset == 'digits' else 1.0
    if name in RESNETS:
        assert (model.backbone, model.depth, model.width) == ('resnet_fpn', RESNETS[name], narrow)
    else:
        scaling = (model.width / narrow, model.resample_alpha, model.block_repeats)
        channels = model.endpoint_channels / narrow
        assert (*scaling, channels) == pytest.approx(SPINENETS[name], rel=0.01)
    best = argument.endswith('-best')
    regularisation = (model.stochastic_depth, model.activation, config.train.label_smoothing)
    assert regularisation == ((0.2, 'swish', 0.1) if best else (0.0, 'relu', 0.0))
    assert (model.bn_momentum, model.bn_epsilon) == (0.9, 1e-5)
    assert config.optim.weight_decay == 1e-4
    task = build_task(config)
    assert task.rows.needs <= SOURCES[source].provides
    assert task.num_classes == classes
    assert list(config) == list(common.get_config())


def test_protocol_in_steps():
    """Published: 62,557 steps, 1,564 of warm-up, peak 1.6; ours rounds epochs up."""
    config = classification.get_config('imagenet-49')
    assert (config.train.batch_size, config.train.epochs) == (4096, 200)
    assert config.data.image_size == (224, 224)
    steps = steps_per_epoch(IMAGENET_IMAGES, config.train.batch_size)
    total = steps * config.train.epochs
    assert (steps, total) == (313, 62_600)
    rate = learning_rate_schedule(config.optim, config.train.batch_size, steps, total)
    assert float(rate(0)) == 0.0
    assert float(rate(313)) == pytest.approx(0.32)
    assert float(rate(5 * 313)) == pytest.approx(1.6)
    # Half of the way from the end of warm-up to the end: half of a cosine.
    assert float(rate((1565 + 62_600) // 2)) == pytest.approx(0.8, rel=1e-3)
    assert float(rate(total)) == pytest.approx(0.0, abs=1e-6)
    small = learning_rate_schedule(config.optim, 256, 5005, 200 * 5005)
    assert float(small(5 * 5005)) == pytest.approx(0.1)


def test_inaturalist_has_the_published_size():
    config = classification.get_config('inaturalist-49')
    model = build_task_model(config, axis_name=None)
    total = sum(model_cost(model, (64, 64)).values(), Cost())
    assert total.parameters / 1e6 == pytest.approx(23.1, abs=0.05)


@pytest.mark.parametrize('argument', ['imagenet', 'imagenet-50', 'coco-49', '-best', '49-best', ''])
def test_unknown_argument_lists_what_there_is(argument):
    with pytest.raises(UserError, match=r'dataset one of imagenet, .*model one of 49S, .*r152$'):
        classification.get_config(argument)

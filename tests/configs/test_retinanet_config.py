"""configs/retinanet.py against the paper's numbers, typed here a second time."""

import pytest

from configs import retinanet
from spinenet_jax.errors import UserError
from spinenet_jax.training.optim import learning_rate_schedule, steps_per_epoch

# model: width, alpha, repeats, endpoints, head width, head convs, input side, anchor size
MODELS = {
    '49S': (0.65, 0.5, 1, 128, 128, 4, 640, 3),
    '49': (1.0, 0.5, 1, 256, 256, 4, 640, 3),
    '49_896': (1.0, 0.5, 1, 256, 256, 4, 896, 3),
    '96': (1.0, 0.5, 2, 256, 256, 4, 1024, 3),
    '143': (1.0, 1.0, 3, 256, 256, 4, 1280, 4),
    '190': (1.3, 1.0, 4, 512, 512, 7, 1280, 4),
    'R0-SP53': (1.0, 0.5, 1, 256, 256, 4, 640, 3),
    'mb49': (1.0, 1.0, 1, 48, 48, 4, 384, 3),
    'mb49S': (0.65, 1.0, 1, 40, 40, 4, 384, 3),
    'mb49XS': (0.6, 1.0, 1, 24, 24, 4, 256, 3),
    'r50': (1.0, 0.5, 1, 256, 256, 4, 640, 4),
    'r101': (1.0, 0.5, 1, 256, 256, 4, 1024, 4),
    'r152': (1.0, 0.5, 1, 256, 256, 4, 1280, 4),
}
# protocol: epochs, scale range, activation, DropBlock keep probability, stochastic depth
PROTOCOLS = {
    'A': (250, 0.8, 1.2, 'relu', 0.9, 0.0),
    'B': (350, 0.5, 2.0, 'relu', 1.0, 0.0),
    'C': (500, 0.5, 2.0, 'swish', 1.0, 0.2),
    'M': (600, 0.5, 2.0, 'swish', 1.0, 0.0),
}
EXCEPTIONS = {
    ('143', 'C'): (500, 0.5, 2.0, 'swish', 1.0, 0.16),
    ('190', 'C'): (400, 0.5, 2.0, 'swish', 1.0, 0.2),
    # Blocks of mobile models have no DropBlock.
    **{(f'mb{size}', 'A'): (250, 0.8, 1.2, 'relu', 1.0, 0.0) for size in ('49', '49S', '49XS')},
}
COCO_IMAGES = 118_287
CASES = [(model, protocol) for model in MODELS for protocol in PROTOCOLS]


def test_no_model_is_missing_from_the_table():
    assert set(retinanet.MODELS) == set(MODELS) and set(retinanet.PROTOCOLS) == set(PROTOCOLS)


@pytest.mark.parametrize(('model', 'protocol'), CASES)
def test_config_is_the_papers(model, protocol):
    config = retinanet.get_config(f'{model}-{protocol}')
    m, data = config.model, config.data
    side = data.image_size[0]
    assert data.image_size == (side, side)
    assert MODELS[model] == (
        *(m.width, m.resample_alpha, m.block_repeats, m.endpoint_channels),
        *(m.head_channels, m.head_convs, side, m.anchor_size),
    )
    epochs = config.train.epochs
    assert EXCEPTIONS.get((model, protocol), PROTOCOLS[protocol]) == (
        *(epochs, data.scale_min, data.scale_max),
        *(m.activation, m.dropblock_keep_prob, m.stochastic_depth),
    )
    assert config.optim.decay_epochs == (epochs - 30, epochs - 10)
    mobile = model.startswith('mb')
    assert m.graph == {'R0-SP53': 'r0_sp53'}.get(model, 'mobile49' if mobile else 'spinenet49')
    assert m.separable_heads == mobile
    assert config.optim.weight_decay == (3e-5 if protocol == 'M' else 4e-5)
    resnet = model.startswith('r')
    assert m.backbone == ('resnet_fpn' if resnet else 'spinenet')
    assert not resnet or m.depth == int(model[1:])


def test_what_all_protocols_share():
    config = retinanet.get_config('49-B')
    optim, model = config.optim, config.model
    assert (config.train.batch_size, optim.learning_rate, optim.learning_rate_batch) == (
        256,
        0.28,
        256,
    )
    assert (optim.momentum, optim.weight_decay, optim.clip_norm) == (0.9, 4e-5, 0)
    assert (optim.warmup_epochs, optim.warmup_start_rate, optim.schedule) == (5, 0.0067, 'step')
    assert (model.bn_momentum, model.bn_epsilon, model.num_classes) == (0.99, 1e-3, 91)
    assert (model.min_level, model.max_level, model.dtype) == (3, 7, 'bfloat16')
    assert config.data.flip and config.data.train_split == 'train2017'


def test_protocol_b_in_steps():
    """The published numbers: 463 steps an epoch, 162,050 in all, drops at 148,160 and 157,420."""
    config = retinanet.get_config('49-B')
    steps = steps_per_epoch(COCO_IMAGES, config.train.batch_size)
    assert steps == 463
    total = steps * config.train.epochs
    assert total == 162_050
    rate = learning_rate_schedule(config.optim, config.train.batch_size, steps, total)
    assert float(rate(0)) == pytest.approx(0.0067, rel=1e-5)
    assert float(rate(2315)) == pytest.approx(0.28)
    assert float(rate(148_159)) == pytest.approx(0.28)
    assert float(rate(148_160)) == pytest.approx(0.028)
    assert float(rate(157_419)) == pytest.approx(0.028)
    assert float(rate(157_420)) == pytest.approx(0.0028)
    assert float(rate(total - 1)) == pytest.approx(0.0028)


@pytest.mark.parametrize('argument', ['49', '50-B', '49-D', '', '49-B-C', '-B'])
def test_unknown_argument_lists_what_there_is(argument):
    with pytest.raises(UserError, match=r'49S, 49, .*r152 and protocol one of A, B, C') as caught:
        retinanet.get_config(argument)
    assert '\n' not in str(caught.value)


def test_a_known_argument_is_locked():
    config = retinanet.get_config('49-B').lock()
    with pytest.raises(AttributeError):
        config.train.epoch = 1

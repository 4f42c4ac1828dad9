"""configs/mask_rcnn.py against the published settings, typed here a second time."""

import pytest

from configs import mask_rcnn
from spinenet_jax.errors import UserError

# model: width, alpha, repeats, endpoints, heads (width, convs, hidden), RPN convs, side, anchors
MODELS = {
    '49S': (0.65, 0.5, 1, 128, (128, 4, 512), 1, 640, 3),
    '49': (1.0, 0.5, 1, 256, (256, 4, 1024), 1, 640, 3),
    '96': (1.0, 0.5, 2, 256, (256, 4, 1024), 1, 1024, 3),
    '143': (1.0, 1.0, 3, 256, (256, 4, 1024), 1, 1280, 3),
    '190': (1.3, 1.0, 4, 512, (384, 7, 1024), 7, 1536, 5),
    'r50': (1.0, 0.5, 1, 256, (256, 4, 1024), 1, 640, 3),
    'r101': (1.0, 0.5, 1, 256, (256, 4, 1024), 1, 1024, 3),
    'r152': (1.0, 0.5, 1, 256, (256, 4, 1024), 1, 1280, 3),
}


def test_no_model_is_missing_from_the_table():
    assert set(mask_rcnn.MODELS) == set(MODELS)
    assert len(mask_rcnn.ARGUMENTS) == 2 * len(MODELS)


@pytest.mark.parametrize('argument', mask_rcnn.ARGUMENTS)
def test_config_is_the_published_one(argument):
    config = mask_rcnn.get_config(argument)
    model, _, variant = argument.partition('-')
    m, data, largest = config.model, config.data, model == '190'
    assert config.task == 'instance_segmentation'
    assert MODELS[model] == (
        *(m.width, m.resample_alpha, m.block_repeats, m.endpoint_channels),
        (m.head_channels, m.head_convs, m.hidden_channels),
        *(m.rpn_convs, data.image_size[0], m.anchor_size),
    )
    assert data.image_size[0] == data.image_size[1]
    assert m.cascade == (variant == 'cascade')
    resnet = model.startswith('r')
    assert m.backbone == ('resnet_fpn' if resnet else 'spinenet')
    assert not resnet or m.depth == int(model[1:])
    epochs = 400 if largest else 350
    assert (config.train.epochs, config.optim.decay_epochs) == (epochs, (epochs - 30, epochs - 10))
    assert (data.scale_min, data.scale_max) == (0.1 if largest else 0.5, 2.0)
    assert (m.activation, m.stochastic_depth) == (('swish', 0.2) if largest else ('relu', 0.0))


def test_what_all_models_share():
    config = mask_rcnn.get_config('49-B')
    model, train = config.model, config.train
    assert (model.bn_momentum, model.bn_epsilon, model.num_classes) == (0.99, 1e-3, 91)
    assert (model.min_level, model.max_level) == (3, 7)
    assert (train.batch_size, train.max_proposals, train.regions) == (256, 1000, 512)
    assert (config.eval.max_proposals, config.eval.max_detections) == (1000, 100)
    assert (config.optim.learning_rate, config.optim.weight_decay) == (0.28, 4e-5)


@pytest.mark.parametrize('argument', ['49', '190-B', '49-C', '49-D', '', 'cascade'])
def test_unknown_argument_lists_what_there_is(argument):
    with pytest.raises(UserError, match=r'49S-B, 49S-cascade, .*r152-cascade') as caught:
        mask_rcnn.get_config(argument)
    assert '\n' not in str(caught.value)

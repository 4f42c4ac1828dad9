"""Places of the two originals' numbering, checked by hand."""

import pytest

from spinenet_jax.convert.tf_names import Architecture, tf1_names, tf2_canonical, tf2_names
from spinenet_jax.models.graph import GRAPHS


@pytest.mark.parametrize('names', [tf1_names, tf2_names])
@pytest.mark.parametrize(
    ('repeats', 'convs', 'variables'),
    # Measured on the originals: backbone 650 (49) or 1,355 (190); head 180 (4 convolutions) or 312.
    [(1, 4, 650 + 180), (4, 7, 1355 + 312), (1, 0, 650)],
)
def test_every_variable_has_one_name(names, repeats, convs, variables):
    found = names(Architecture(repeats, convs))
    assert len(found) == len(set(found.values())) == variables


def test_places_in_tf1():
    names = tf1_names(Architecture(block_repeats=1))
    backbone = 'params/backbone'
    assert names[f'{backbone}/stem_conv/kernel'] == 'spinenet/conv2d/kernel'
    assert names[f'{backbone}/stem_block0_0/shortcut/kernel'] == 'spinenet/conv2d_1/kernel'
    # 1 stem, 4 and 3 in the stem blocks: endpoints start at 8.
    assert names[f'{backbone}/endpoint3/kernel'] == 'spinenet/conv2d_8/kernel'
    assert names['batch_stats/backbone/endpoint_norm7/var'] == (
        'spinenet/batch_normalization_12/moving_variance'
    )
    scope = 'spinenet/sub_policy13'
    assert names[f'{backbone}/resample15_0/conv_down/kernel'] == (
        f'{scope}/resample_with_alpha_resample_13_0/conv2d_1/kernel'
    )
    assert names[f'{backbone}/block15_0/norm3/scale'] == (
        f'{scope}/scale_permuted_block_15/batch_normalization_2/gamma'
    )
    assert names['params/box_head/norm2_5/bias'] == 'retinanet/box_net/box-2-5/beta'


MOBILE = Architecture(graph=GRAPHS['mobile49'], separable_heads=True)


@pytest.mark.parametrize('names', [tf1_names, tf2_names])
def test_every_mobile_variable_has_one_name(names):
    """Measured on the originals: 667 in the backbone, 190 in the head."""
    found = names(MOBILE)
    assert len(found) == len(set(found.values())) == 667 + 190


def test_mobile_places_in_tf1():
    """Kinds of layers count by themselves; squeeze and excitation are ordinary convolutions."""
    names = tf1_names(MOBILE)
    backbone, scope = 'params/backbone', 'spinenet_mbconv'
    # Stem 0, first block 1 to 4, second block 5 to 8, endpoints from 9.
    assert names[f'{backbone}/stem_block0_0/excite/bias'] == f'{scope}/conv2d_3/bias'
    assert names[f'{backbone}/stem_block1_0/project/kernel'] == f'{scope}/conv2d_8/kernel'
    assert names[f'{backbone}/stem_block1_0/depthwise/kernel'] == (
        f'{scope}/depthwise_conv2d_1/depthwise_kernel'
    )
    assert names[f'{backbone}/endpoint7/kernel'] == f'{scope}/conv2d_13/kernel'
    # 1 norm of the stem, 3 of each block.
    assert names[f'{backbone}/endpoint_norm3/scale'] == f'{scope}/batch_normalization_7/gamma'
    edge = f'{scope}/sub_policy14/resample_with_sepconv_resample_14_0'  # level 4 to level 7
    assert names[f'{backbone}/resample16_0/down2/kernel'] == (
        f'{edge}/depthwise_conv2d_2/depthwise_kernel'
    )
    assert names[f'{backbone}/resample16_0/norm_out/bias'] == f'{edge}/batch_normalization_3/beta'
    assert names['params/class_head/conv1/depthwise/kernel'] == (
        'retinanet/class_net/class-1/depthwise_kernel'
    )
    assert names['params/box_head/predict/pointwise/bias'] == 'retinanet/box_net/box-predict/bias'


def test_mobile_places_in_tf2():
    names = tf2_names(MOBILE)
    block = 'inverted_bottleneck_block_3'  # after two of the stem and one more
    assert names['params/backbone/block3_0/squeeze/kernel'] == (
        f'{block}/_squeeze_excitation/_se_reduce/kernel'
    )
    assert names['params/backbone/block3_0/depthwise/kernel'] == f'{block}/_conv1/depthwise_kernel'
    # The stem, then two edges of each of 16 blocks: no number is left out.
    assert names['params/backbone/endpoint3/kernel'] == 'conv2d_33/kernel'
    found = tf2_canonical(
        [
            (
                'backbone/layer_with_weights-5/depthwise_kernel',
                'depthwise_conv2d_21/depthwise_kernel',
            ),
            (
                'backbone/layer_with_weights-2/_squeeze_excitation/_se_expand/bias',
                'inverted_bottleneck_block_18/squeeze_excitation_18/conv2d_9/bias',
            ),
        ]
    )
    assert found == [
        'depthwise_conv2d/depthwise_kernel',
        'inverted_bottleneck_block/_squeeze_excitation/_se_expand/bias',
    ]


def test_a_classifier_in_tf1():
    names = tf1_names(Architecture(head_convs=0, classifier=True))
    assert names['params/head/kernel'] == 'classification_head/dense/kernel'


@pytest.mark.parametrize('repeats', [1, 2])
def test_places_in_tf2(repeats):
    names = tf2_names(Architecture(repeats))
    # 4 numbers, 77 to 80, belong to the block that a model of levels 3 to 7 drops.
    assert names['params/backbone/resample16_1/conv_out/kernel'] == 'conv2d_76/kernel'
    assert names['params/backbone/endpoint3/kernel'] == 'conv2d_81/kernel'
    assert names['params/backbone/endpoint_norm7/bias'] == 'batch_normalization_85/beta'
    assert names['params/backbone/stem_block0_0/norm_shortcut/scale'] == (
        'bottleneck_block/_norm0/gamma'
    )
    # Block 6 is the second residual one.
    assert names['params/backbone/block6_0/conv2/kernel'] == (
        f'residual_block_{repeats}/_conv2/kernel'
    )
    assert names['batch_stats/class_head/norm1_7/mean'] == 'head/_cls_norms/4/1/moving_mean'


@pytest.mark.parametrize('repeats', [1, 3])
def test_places_in_the_beta_of_tf2(repeats):
    """Its graph had no P2 block: numbers go on without a gap."""
    names = tf2_names(Architecture(repeats, counts_p2=False))
    assert names['params/backbone/resample16_1/conv_out/kernel'] == 'conv2d_76/kernel'
    assert names['params/backbone/endpoint3/kernel'] == 'conv2d_77/kernel'
    assert names['params/backbone/endpoint7/kernel'] == 'conv2d_81/kernel'
    assert names['batch_stats/backbone/endpoint_norm7/mean'] == 'batch_normalization_81/moving_mean'


def test_synchronised_norms_have_the_names_of_plain_ones():
    key = 'model/_backbone/layer_with_weights'
    found = tf2_canonical(
        [
            (f'{key}-1/gamma', 'sync_batch_normalization_90/gamma'),
            (f'{key}-9/moving_mean', 'sync_batch_normalization_92/moving_mean'),
            (f'{key}-0/kernel', 'conv2d_4/kernel'),
            (f'{key}-4/_norm2/beta', 'bottleneck_block_3/sync_batch_normalization_1/beta'),
        ]
    )
    assert found == [
        'batch_normalization/gamma',
        'batch_normalization_2/moving_mean',
        'conv2d/kernel',
        'bottleneck_block/_norm2/beta',
    ]


def test_canonical_names_ignore_earlier_models_and_prefixes():
    found = tf2_canonical(
        [
            ('model/_backbone/layer_with_weights-0/kernel', 'spine_net/conv2d_86/kernel'),
            ('model/_backbone/layer_with_weights-7/kernel', 'conv2d_91/kernel'),
            ('backbone/layer_with_weights-9/gamma', 'batch_normalization/gamma'),
            ('backbone/layer_with_weights-3/_conv1/kernel', 'bottleneck_block_28/conv2d/kernel'),
            ('backbone/layer_with_weights-2/_shortcut/kernel', 'bottleneck_block_27/conv2d/kernel'),
            ('head/_box_norms/2/1/beta', 'retina_net_model_3/retina_net_head/x/beta'),
            ('model/_head/_classifier/bias', 'retina_net_model/retina_net_head/scores/bias'),
            ('optimizer/_iterations', 'iteration'),
            ('head/_att_convs/0/kernel', 'retina_net_head/att/kernel'),
        ]
    )
    assert found == [
        'conv2d/kernel',
        'conv2d_5/kernel',
        'batch_normalization/gamma',
        'bottleneck_block_1/_conv1/kernel',
        'bottleneck_block/_shortcut/kernel',
        'head/_box_norms/2/1/beta',
        'head/_classifier/bias',
        None,
        'head/_att_convs/0/kernel',
    ]

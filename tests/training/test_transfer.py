"""Starting from other weights: what is taken, what is told."""

import numpy as np
import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.training.transfer import transfer


def weights(classes, value, name='predict'):
    return {
        'params': {
            'backbone': {'conv': {'kernel': np.full((3, 3), value, np.float32)}},
            'class_head': {name: {'kernel': np.full((3, classes), value, np.float32)}},
        },
        'batch_stats': {'backbone': {'norm': {'mean': np.full(3, value, np.float32)}}},
    }


def test_heads_may_differ_in_classes():
    filled, report = transfer(weights(5, 0.0), weights(91, 1.0), 'runs/coco')
    assert filled['params']['backbone']['conv']['kernel'].all()
    assert filled['batch_stats']['backbone']['norm']['mean'].all()
    np.testing.assert_array_equal(filled['params']['class_head']['predict']['kernel'], 0)
    assert report.loaded == [
        'batch_stats/backbone/norm/mean',
        'params/backbone/conv/kernel',
    ]
    assert report.lines() == [
        '2 loaded',
        '1 left as initialised, shapes differ: '
        'params/class_head/predict/kernel (3, 5) here, (3, 91) there',
    ]


def test_missing_and_extra_are_named():
    _, report = transfer(weights(5, 0.0), weights(5, 1.0, name='logits'), 'runs/coco')
    assert report.missing == ['params/class_head/predict/kernel']
    assert report.extra == ['params/class_head/logits/kernel']
    assert report.lines()[1:] == [
        '1 left as initialised, not in the checkpoint: params/class_head/predict/kernel',
        '1 in the checkpoint but not in this model: params/class_head/logits/kernel',
    ]


def test_long_lists_are_cut():
    many = {'params': {f'p{i}': np.zeros(2) for i in range(10)}, 'batch_stats': {}}
    one = {'params': {'p0': np.zeros(2)}, 'batch_stats': {}}
    filled, report = transfer(many, one, 'x')
    assert report.lines()[1].endswith('params/p6 and 3 more')
    assert filled['batch_stats'] == {}


def test_nothing_in_common_is_refused():
    other = {'params': {'dense': np.zeros(3)}, 'batch_stats': {}}
    with pytest.raises(UserError, match=r'train.init_from=runs/other: none of its parameters fits'):
        transfer(weights(5, 0.0), other, 'runs/other')


def test_dtype_of_the_new_model_stays():
    old = {'params': {'a': np.ones(2, np.float64)}, 'batch_stats': {}}
    filled, _ = transfer({'params': {'a': np.zeros(2, np.float32)}, 'batch_stats': {}}, old, 'x')
    assert filled['params']['a'].dtype == np.float32

"""Starting from other weights: what is taken, what is told."""

import numpy as np
import pytest

from configs import common
from spinenet_jax.errors import UserError
from spinenet_jax.models import graph
from spinenet_jax.training.transfer import other_graph, transfer


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


def run_of(folder, **model):
    config = common.get_config()
    config.model.update(model)
    (folder / 'config.json').write_text(config.to_json())
    return str(folder)


def test_weights_of_another_graph_are_warned_of(tmp_path):
    """Block 3 of SpineNet-49, moved from level 4 to 5, is the only one that differs."""
    moved = graph.to_text(graph.load('spinenet49')).replace('4R 0,1', '5R 0,1')
    run = run_of(tmp_path, graph=moved)
    line = other_graph(common.get_config().model, run)
    assert line.startswith(f'train.init_from={run} is of another graph: 1 of 15 blocks')
    assert '\n' not in line
    assert other_graph(common.get_config().model, f'{run}/checkpoints/4') == line.replace(
        run, f'{run}/checkpoints/4'
    )


def test_the_same_graph_is_not_whatever_it_is_called(tmp_path):
    model = common.get_config().model
    assert other_graph(model, run_of(tmp_path)) == ''
    assert other_graph(model, run_of(tmp_path, graph=graph.to_text(graph.load(model.graph)))) == ''
    assert other_graph(model, run_of(tmp_path, backbone='resnet_fpn')) == ''
    (tmp_path / 'config.json').write_text('{')
    assert other_graph(model, str(tmp_path)) == ''
    assert other_graph(model, str(tmp_path / 'missing')) == ''

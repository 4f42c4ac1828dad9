"""Features and head outputs equal the TF2 Model Garden's.

The goldens are `backbone`, `mobile` and `resnet` of tools/maintenance/make_goldens.py.
"""

import pytest

from tests.convert import golden
from tools.maintenance import oracle_cases as cases

TOLERANCE = 1e-5


@pytest.mark.parametrize('name', cases.BACKBONES)
def test_forward_equals_the_model_garden(name):
    size, changes = cases.BACKBONES[name]
    images = cases.normalised(cases.images(name, 1, size))
    ours = golden.forward(cases.model(**changes), images)
    stored = golden.part(golden.load('backbone'), name)
    assert len(stored) == (15 if name in cases.HEADS else 5)
    golden.check({key: ours[key] for key in stored}, stored, TOLERANCE)


def test_mobile_forward_equals_the_model_garden():
    images = cases.normalised(cases.images('mobile', 1, cases.MOBILE_SIZE))
    stored = golden.load('mobile')
    assert len(stored) == 15
    golden.check(golden.forward(cases.MOBILE, images), stored, TOLERANCE)


def test_resnet_fpn_forward_equals_the_model_garden():
    images = cases.normalised(cases.images('resnet', 1, cases.RESNET_SIZE))
    stored = golden.load('resnet')
    assert len(stored) == 15
    golden.check(golden.forward(cases.RESNET, images), stored, TOLERANCE)

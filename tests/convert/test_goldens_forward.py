"""Features and head outputs equal the TF2 Model Garden's (tools/make_goldens.py: backbone)."""

import pytest

from tests.convert import golden
from tools import oracle_cases as cases

TOLERANCE = 1e-5


@pytest.mark.parametrize('name', cases.BACKBONES)
def test_forward_equals_the_model_garden(name):
    size, changes = cases.BACKBONES[name]
    images = cases.normalised(cases.images(name, 1, size))
    ours = golden.forward(cases.model(**changes), images)
    stored = golden.part(golden.load('backbone'), name)
    assert len(stored) == (15 if name in cases.HEADS else 5)
    golden.check({key: ours[key] for key in stored}, stored, TOLERANCE)

"""Which policy belongs to which device."""

from types import SimpleNamespace

import jax
import pytest

from spinenet_jax.lowering.policy import CPU, PLAIN, TPU, TPU_V3, policy_of


@pytest.mark.parametrize(
    ('platform', 'kind', 'policy'),
    [
        ('cpu', 'cpu', CPU),
        ('gpu', 'NVIDIA H100 80GB HBM3', PLAIN),
        ('tpu', 'TPU v2', TPU_V3),
        ('tpu', 'TPU v3', TPU_V3),
        ('tpu', 'TPU v4', TPU),
        ('tpu', 'TPU v5 lite', TPU),
    ],
)
def test_policy_of(platform, kind, policy):
    assert policy_of(SimpleNamespace(platform=platform, device_kind=kind)) == policy


def test_policy_of_this_machine():
    assert policy_of(jax.local_devices(backend='cpu')[0]) == CPU


def test_policies_are_hashable_and_differ():
    assert len({PLAIN, CPU, TPU_V3, TPU}) == 4

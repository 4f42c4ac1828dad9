"""The process of a candidate."""

from absl import flags

from spinenet_jax import inference
from spinenet_jax.search import training
from spinenet_jax.training import distributed, loop


def test_it_is_alone_also_on_a_tpu_host(monkeypatch, tmp_path):
    """It would wait for the other hosts, or meet a second candidate of its own host."""
    trained = []
    monkeypatch.setattr(flags, 'FLAGS', type('Flags', (), {'workdir': str(tmp_path)}))
    monkeypatch.setattr(inference, 'read_config', lambda folder: 'its config')
    monkeypatch.setattr(loop, 'train', lambda *given: trained.append(given))
    monkeypatch.setattr(distributed, '_on_tpu_vm', lambda: True)
    monkeypatch.setattr(distributed, '_join', lambda *_: trained.append('joined'))
    training.main()
    assert trained == [('its config', str(tmp_path))]

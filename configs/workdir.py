"""The settings of an earlier run: configs/workdir.py:<its workdir>

    python eval.py --config=configs/workdir.py:runs/mine --workdir=runs/mine \
        --config.data.root=/elsewhere

eval.py and predict.py take them by themselves when no --config is given.
"""

from ml_collections import ConfigDict

from spinenet_jax.errors import UserError


def get_config(workdir: str = '') -> ConfigDict:
    """Reads <workdir>/config.json, of a run of train.py or of a converted checkpoint."""
    from spinenet_jax.inference import read_config

    if not workdir:
        raise UserError('configs/workdir.py:<workdir>: the workdir of an earlier run is missing')
    return read_config(workdir)

"""A trained detector on your own classes: configs/finetune.py:<workdir to start from>

    python tools/convert_checkpoint.py --source=spinenet-49.tar.gz --workdir=runs/49-tf1 \
        --config=configs/retinanet.py:49-B
    python train.py --config=configs/finetune.py:runs/49-tf1 --workdir=runs/mine \
        --config.data.root=/data/mine --config.data.train_split=train --config.data.eval_split=val

The model is that of the workdir, a converted checkpoint or a run of ours, with as many classes as
the data has: what predicts a class starts anew, everything else from the trained weights, and the
log lists both. A Mask R-CNN goes on with masks, and needs data that has them.

Hardware assumed: one GPU or one TPU v3 board (8 cores), batch 16. 24 epochs, or 400 steps where
these are more; warm-up of 50 steps to about the rate that trains from scratch, x0.1 for the last 8
and last 2 epochs, scale 0.8 to 1.2: our choice, since neither the paper nor the public code
fine-tunes a detector. Result on COCO classes: not run. On 24 images of three classes
(tools/make_letters.py), from a run of configs/digits.py on two CPU cores, with
--config.train.batch_size=8 --config.train.min_steps=250 --config.data.flip=False: AP 0.769 on 12
others; 0.726 after 100 of the 250 steps. The defaults make 400 steps of 16: not run.
"""

from ml_collections import ConfigDict

from configs import common
from configs import workdir as workdir_config


def get_config(workdir: str = '') -> ConfigDict:
    """Settings for fine-tuning the detector in `workdir`."""
    source = workdir_config.get_config(workdir)
    config = common.get_config()
    config.model.update(source.model)
    config.model.num_classes = 0  # as many as the data has
    if source.task == 'instance_segmentation':
        config.task = source.task
        config.train.regions = source.train.regions
        config.train.max_proposals = source.train.max_proposals
        config.eval.max_proposals = source.eval.max_proposals

    config.data.image_size = source.data.image_size
    config.data.scale_min = 0.8
    config.data.scale_max = 1.2

    config.train.init_from = workdir
    config.train.batch_size = 16
    config.train.epochs = 24
    config.train.min_steps = 400
    config.train.eval_every_epochs = 4

    config.optim.learning_rate = 0.02
    config.optim.learning_rate_batch = 16
    config.optim.warmup_epochs = 0.0
    config.optim.min_warmup_steps = 50
    config.optim.warmup_start_rate = 0.0
    config.optim.decay_epochs = (16, 22)
    return config

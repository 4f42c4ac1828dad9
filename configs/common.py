"""The fields every config has, with the values the detection configs share.

Rates, weight decay, momentum and warm-up are those of the paper (section "Training protocols").
A file beside this one copies these fields and changes some; nothing adds a field elsewhere.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """SpineNet-49 RetinaNet on COCO with protocol B, to be specialised."""
    config = ConfigDict()
    config.seed = 0
    config.task = 'detection'  # or 'classification'

    config.model = ConfigDict()
    config.model.backbone = 'spinenet'  # or 'resnet_fpn'
    config.model.graph = 'spinenet49'  # or 'r0_sp53'; spinenet only
    config.model.depth = 50  # 50, 101, 152; resnet_fpn only
    config.model.width = 1.0
    config.model.resample_alpha = 0.5
    config.model.block_repeats = 1
    config.model.endpoint_channels = 256
    config.model.head_channels = 256
    config.model.head_convs = 4
    config.model.num_classes = 91  # background, then labels 1..90; 0: as many as the data has
    config.model.anchor_size = 3.0  # side of the smallest anchor, in cells
    config.model.min_level = 3
    config.model.max_level = 7
    config.model.activation = 'relu'  # or 'swish'
    config.model.stochastic_depth = 0.0  # rate of the last block; 0 is off
    config.model.dropblock_keep_prob = 1.0  # 1 is off
    config.model.dropblock_size = 7
    config.model.padding = 'same'  # or 'symmetric', as the TF1 release
    config.model.pooling = 'chain'  # or 'single', as the TF1 release
    config.model.bn_momentum = 0.99
    config.model.bn_epsilon = 1e-3
    config.model.dtype = 'bfloat16'  # of the convolutions; parameters and losses are float32

    config.data = ConfigDict()
    config.data.source = 'coco'  # one of data/build.py's SOURCES
    config.data.root = ''
    config.data.train_split = 'train2017'
    config.data.eval_split = 'val2017'
    config.data.tfds_name = 'coco/2017'
    config.data.annotations = ''  # official JSON to evaluate against; tfds only
    config.data.image_size = (640, 640)  # height, width
    config.data.scale_min = 0.5  # long side relative to image_size
    config.data.scale_max = 2.0
    config.data.flip = True
    config.data.max_boxes = 100  # an image, for training
    config.data.crop_area_min = 0.08  # share of an image that a training crop shows;
    config.data.crop_area_max = 1.0  # these five: classification only
    config.data.crop_aspect_min = 3 / 4  # width over height
    config.data.crop_aspect_max = 4 / 3
    config.data.eval_crop = 0.875  # share of the short side that evaluation sees, at the centre
    config.data.num_threads = 0  # of each process that reads; 0: one a core, at most 16
    config.data.worker_count = 0  # processes; 0: none but this (docs/input_pipeline.md)

    config.train = ConfigDict()
    config.train.batch_size = 256  # images a step, over all devices
    config.train.epochs = 350
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 1000
    config.train.keep_checkpoints = 2  # latest ones; the best is kept besides
    config.train.eval_every_epochs = 10
    config.train.label_smoothing = 0.0  # of the targets; classification only
    # Recompute blocks in the backward pass: less memory, more time. None: where it would not fit.
    config.train.remat = config_dict.placeholder(bool)
    config.train.init_from = ''  # workdir or checkpoint to take fitting weights from

    config.optim = ConfigDict()
    config.optim.learning_rate = 0.28  # for learning_rate_batch images; scaled with batch_size
    config.optim.learning_rate_batch = 256
    config.optim.schedule = 'step'  # or 'cosine'
    config.optim.warmup_epochs = 5.0
    config.optim.warmup_start_rate = 0.0067  # scaled like learning_rate
    config.optim.decay_epochs = (320, 340)  # 'step' only
    config.optim.decay_factor = 0.1
    config.optim.momentum = 0.9
    config.optim.weight_decay = 4e-5  # kernels only
    config.optim.clip_norm = 0.0  # 0 is off
    config.optim.accumulate_steps = 1

    config.eval = ConfigDict()
    config.eval.batch_size = 32  # images a step, over all devices
    config.eval.score_threshold = 0.05
    config.eval.nms_iou = 0.5
    config.eval.max_candidates = 5000  # a class
    config.eval.max_detections = 100  # an image
    config.eval.pictures = 8
    config.eval.expected = ConfigDict()  # metric: (value, tolerance), checked by eval.py
    return config

"""Makes the cases of the comparison with the Model Garden, and their inputs, for both sides.

Inputs and weights are drawn from numpy generators keyed by name, so that `make_goldens.py` (which
runs where TensorFlow is) and the tests (which run where JAX is) make the same ones and only
outputs are stored. Needs numpy alone.
"""

import re
import zlib

import numpy as np

NARROW = {
    'width': 0.125,
    'resample_alpha': 0.5,
    'block_repeats': 1,
    'endpoint_channels': 16,
    'head_channels': 16,
    'head_convs': 2,
    'num_classes': 6,
    'activation': 'relu',
    'anchor_size': 3.0,
}
# 0.08125 and 0.1625 are the widths of 49S and 190 times 1/8: 5, 10 and 20 channels, of which half
# is 2 (not 2.5), 5 and 10; and 10, 20 and 41 channels.
BACKBONES = {
    'relu': ((128, 128), {}),
    'swish_repeats': ((128, 128), {'activation': 'swish', 'block_repeats': 2}),
    'alpha_one': ((128, 256), {'resample_alpha': 1.0}),
    'truncated': ((256, 128), {'width': 0.08125, 'activation': 'swish'}),
    'wide': ((128, 128), {'width': 0.1625, 'resample_alpha': 1.0, 'block_repeats': 2}),
}
HEADS = ('relu', 'swish_repeats')  # whose class and box outputs are stored too
ANCHORS = (((128, 256), 3.0), ((128, 128), 4.0))
TRAINING = {**NARROW, 'activation': 'swish'}
TRAINING_SIZE, TRAINING_BATCH, TRAINING_STEPS = (256, 256), 8, 10
TRAINING_SGD = {'learning_rate': 1e-4, 'momentum': 0.9, 'weight_decay': 1e-3}
# Mask R-CNN and its cascade, with few regions, so that goldens stay small.
MASK_RCNN = {
    **NARROW,
    'activation': 'swish',
    'hidden_channels': 32,
    'rpn_convs': 1,
    'cascade': False,
}
MASK_RCNN_SIZE, MASK_RCNN_TRAINING = (128, 256), {'size': (256, 256), 'batch': 4}
PROPOSALS = {'candidates': 200, 'proposals': 100}  # in training twice as many candidates
LOSSES = (  # as the Garden names them
    'rpn_score_loss',
    'rpn_box_loss',
    'frcnn_cls_loss',
    'frcnn_box_loss',
    'mask_loss',
    'total_loss',
)
REGIONS, TRAINED_MASKS, ANCHORS_DRAWN, MASKS_STORED = 32, 8, 64, 16
# Of the Garden's beta layout the whole checkpoint is stored, so the model is as narrow as it gets.
BETA = {
    **NARROW,
    'width': 0.03125,
    'endpoint_channels': 8,
    'head_channels': 8,
    'head_convs': 1,
    'num_classes': 3,
    'activation': 'swish',
}
BETA_SIZE = (128, 128)
MOBILE = {  # the gate is the Garden's
    **NARROW,
    'graph': 'mobile49',
    'width': 0.25,
    'resample_alpha': 1.0,
    'endpoint_channels': 8,
    'head_channels': 8,
    'activation': 'swish',
    'separable_heads': True,
    'squeeze_gate': 'hard_sigmoid',
}
MOBILE_SIZE = (128, 256)
RESNET = {**NARROW, 'backbone': 'resnet_fpn', 'depth': 50, 'width': 0.25}
RESNET_SIZE = (128, 256)
FULL = {  # the published sizes
    '49S': {
        'width': 0.65,
        'endpoint_channels': 128,
        'head_channels': 128,
        'head_convs': 4,
        'num_classes': 91,
        'activation': 'swish',
    },
    '49': {
        'width': 1.0,
        'endpoint_channels': 256,
        'head_channels': 256,
        'head_convs': 4,
        'num_classes': 91,
        'activation': 'swish',
    },
    '190': {
        'width': 1.3,
        'resample_alpha': 1.0,
        'block_repeats': 4,
        'endpoint_channels': 512,
        'head_channels': 512,
        'head_convs': 7,
        'num_classes': 91,
        'activation': 'swish',
        'anchor_size': 4.0,
    },
    'mb49': {
        **MOBILE,
        'width': 1.0,
        'endpoint_channels': 48,
        'head_channels': 48,
        'head_convs': 4,
        'num_classes': 91,
    },
}


FULL_MASK_RCNN = {  # the published sizes; relu makes random outputs ill-conditioned
    **NARROW,
    **FULL['49'],
    'hidden_channels': 1024,
    'rpn_convs': 1,
    'cascade': False,
}


def model(**changes: object) -> dict[str, object]:
    """A complete model: `NARROW` with `changes`."""
    return {**NARROW, **changes}


def generator(name: str, seed: int = 0) -> np.random.Generator:
    """The generator of one named array."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def weight(path: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A random f32[shape] for our parameter `path`, of a size that keeps activations near 1.

    Kernels have variance 2 / fan-in; norms shrink what the graph's sums enlarge. The class
    predictor's bias keeps most scores low, so that a few detections stand out.
    """
    random, leaf = generator(path, seed), path.rsplit('/', 1)[1]
    if leaf == 'kernel':
        value = random.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[:-1]))
    elif leaf == 'var':
        value = random.uniform(0.5, 1.5, shape)
    elif leaf == 'scale':
        value = random.uniform(0.5, 1.1, shape)
    else:
        value = 0.1 * random.standard_normal(shape)
        if path.endswith('class_head/predict/bias'):
            value -= 3.0
    return value.astype(np.float32)


def training_weight(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """As `weight`, with residual branches and predictors damped, to be well-conditioned.

    Undamped, or with relu, a change of the last bit of all weights moves gradients of the stem by
    5 per cent, and no tolerance would tell a mistake from that.
    """
    if path.endswith('predict/kernel'):
        return weight(path, shape) * np.float32(0.1)
    if not path.endswith('/scale'):
        return weight(path, shape)
    value = generator(path).uniform(0.7, 1.1, shape)
    last = re.search(r'block\d+_\d/norm3/|/block[3689]_\d/norm2/', path)
    return (value * (0.2 if last else 1.0)).astype(np.float32)


def region_weight(path: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """As `training_weight`, with scores far from 0 and 1 and proposals near their anchors.

    For Mask R-CNN; scores that are equal to the last bit would be ordered by rounding.

    `shape` is that of our parameters, also of the transposed convolution, whose inputs TensorFlow
    puts last.
    """
    value = weight(path, shape, seed)
    if path.endswith('/scale'):
        value = generator(path, seed).uniform(0.7, 1.1, shape)
        last = re.search(r'block\d+_\d/norm3/|/block[3689]_\d/norm2/', path)
        value = (value * (0.2 if last else 1.0)).astype(np.float32)
    damped = re.search(r'(proposal_head/(score|box)|box_heads_\d/class)/kernel$', path)
    return value * np.float32(0.1 if damped else 1.0)


def full_region_weight(path: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """As `region_weight`, for 91 classes, of which some then stand out."""
    value = region_weight(path, shape, seed)
    spread = re.search(r'box_heads_\d/class/kernel$', path)
    return value * np.float32(12.0 if spread else 1.0)


def mask_rcnn_batch() -> dict[str, np.ndarray]:
    """A training batch as the input pipeline makes it: an image has one to four objects."""
    size, batch = MASK_RCNN_TRAINING['size'], MASK_RCNN_TRAINING['batch']
    rows, classes = 5, MASK_RCNN['num_classes']
    result = {
        'image': images('mask_rcnn training', batch, size),
        'content_size': np.tile(np.array(size, np.int32), (batch, 1)),
        'boxes': np.zeros((batch, rows, 4), np.float32),
        'labels': np.zeros((batch, rows), np.int32),
        'valid': np.zeros((batch, rows), bool),
        'masks': np.zeros((batch, rows, 112, 112), np.uint8),
    }
    y, x = np.mgrid[:112, :112] / 55.5 - 1
    for image in range(batch):
        count = 1 + image
        found = boxes(f'mask_rcnn {image}', count, size, classes, square=True)
        result['boxes'][image, :count], result['labels'][image, :count] = found
        result['valid'][image, :count] = True
        for n in range(count):  # a half of an ellipse, another one for each object, soft edges
            distance = 1.2 - (y - 0.2 * n) ** 2 - (x + 0.1 * image) ** 2 - 0.3 * x * y
            result['masks'][image, n] = np.clip(127 + 600 * distance, 0, 255)
    result['has_mask'] = result['valid'].copy()
    return result


def pack(values: np.ndarray) -> np.ndarray:
    """f32[...] as int16 of 1/32767 of the largest value, which comes last: half the space."""
    largest = max(float(np.max(np.abs(values))), 1e-30)
    steps = np.round(values.ravel() / largest * 32767).astype('<i2')
    return np.concatenate([steps, np.array([largest], '<f4').view('<i2')])


def unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What `pack` was given, to within 1/65534 of the largest value."""
    largest = packed[-2:].view('<f4')[0]
    return (packed[:-2].astype(np.float32) / 32767 * largest).reshape(shape)


def images(name: str, batch: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """u8[batch,*size,3]: smooth colour with noise on it, so that no two pixels are alike."""
    random = generator(name, seed)
    height, width = size
    coarse = random.uniform(0, 255, (batch, height // 32, width // 32, 3))
    smooth = coarse.repeat(32, axis=1).repeat(32, axis=2)
    noise = random.uniform(-40, 40, (batch, height, width, 3))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def normalised(pixels: np.ndarray) -> np.ndarray:
    """f32 of u8 pixels, by ImageNet's channel statistics."""
    mean = np.array((0.485, 0.456, 0.406), np.float32)
    deviation = np.array((0.229, 0.224, 0.225), np.float32)
    return ((pixels.astype(np.float32) / np.float32(255.0) - mean) / deviation).astype(np.float32)


def boxes(
    name: str, count: int, size: tuple[int, int], classes: int, square: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(f32[count,4] boxes in pixels, i32[count] labels from 1) inside an image of `size`.

    Several anchors overlap a long box equally, and rounding decides which of them it claims; a
    nearly `square` one always has a best anchor.
    """
    random = generator(name)
    sides = np.exp(random.uniform(np.log(6), np.log(0.9 * min(size)), (count, 2)))
    if square:
        sides[:, 1] = sides[:, 0] * random.uniform(0.8, 1.0, count)
    corner = random.uniform(0, 1, (count, 2)) * (np.array(size) - sides)
    found = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    return found, random.integers(1, classes, count).astype(np.int32)


def training_batch(step: int) -> dict[str, np.ndarray]:
    """A training batch as the input pipeline makes it; its last image has no boxes."""
    batch, rows = TRAINING_BATCH, 8
    result = {
        'image': images(f'training {step}', batch, TRAINING_SIZE),
        'content_size': np.tile(np.array(TRAINING_SIZE, np.int32), (batch, 1)),
        'boxes': np.zeros((batch, rows, 4), np.float32),
        'labels': np.zeros((batch, rows), np.int32),
        'valid': np.zeros((batch, rows), bool),
    }
    for image in range(batch - 1):
        count = 2 + image
        name, classes = f'training {step} {image}', TRAINING['num_classes']
        found = boxes(name, count, TRAINING_SIZE, classes, square=True)
        result['boxes'][image, :count], result['labels'][image, :count] = found
        result['valid'][image, :count] = True
    return result


MATCHING_SIZE = (128, 128)


def matching() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{case: (boxes, labels)} for a 128x128 image."""
    tiny = [[60.3, 60.1, 62.0, 63.5], [1.0, 1.0, 2.5, 2.0], [100, 4, 102, 120]]
    # Centred between anchors; one box twice; three boxes that want one anchor of the last level.
    ties = [[32, 32, 64, 64], [32, 32, 64, 64], [16, 16, 48, 48], [0, 0, 128, 128]]
    ties += [[0, 0, 128, 128]]
    ties += [[1, 1, 127, 127], [40, 40, 48, 48], [8, 8, 8.5, 8.5]]
    corner = [[0, 0, 128, 128], [120, 120, 128, 128], [0, 120, 3, 128]]
    return {
        'ordinary': boxes('matching', 12, MATCHING_SIZE, 6),
        'forced': (np.array(tiny, np.float32), np.array([1, 2, 3], np.int32)),
        'ties': (np.array(ties, np.float32), np.arange(1, 9, dtype=np.int32)),
        'corners': (np.array(corner, np.float32), np.array([5, 4, 3], np.int32)),
        'none': (np.zeros((0, 4), np.float32), np.zeros((0,), np.int32)),
    }


def head_outputs(name: str, anchors: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(f32[anchors,classes] logits, f32[anchors,4] codes) as if from a trained head."""
    random = generator(name)
    logits = random.normal(-3.0, 2.5, (anchors, classes))
    return logits.astype(np.float32), random.normal(0, 0.3, (anchors, 4)).astype(np.float32)


def detection_outputs(name: str, anchors: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """As `head_outputs`; 'ties' rounds logits to quarters, 'few' leaves a dozen above threshold."""
    logits, codes = head_outputs(name, anchors, classes)
    if name == 'ties':
        logits = np.round(4 * logits) / 4
    if name == 'few':
        keep = generator('few rows').permutation(anchors)[:12]
        low = np.full_like(logits, -8.0)
        low[keep] = np.abs(logits[keep])
        logits = low
    return logits, codes


DETECTION_CASES = ('ordinary', 'ties', 'few')


PREPROCESSING_SIZE = (128, 128)
# case: (original size, flip, scale relative to the output, offset draws y and x; None: evaluation)
PREPROCESSING = {
    'eval_wide': ((90, 150), None),
    'eval_tall': ((203, 121), None),
    'small': ((90, 150), (False, 0.713, 0.4, 0.6)),
    'crop_flipped': ((203, 121), (True, 1.677, 0.31, 0.83)),
    'tiny_flipped': ((64, 64), (True, 0.1, 0.0, 0.0)),
    'double': ((77, 250), (False, 2.0, 0.999, 0.5)),
}


def photo(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(u8[h,w,3], boxes f32[n,4] in its pixels, labels i32[n], crowd bool[n]) of a case.

    The last box is a crowd.
    """
    height, width = PREPROCESSING[name][0]
    whole = images(f'photo {name}', 1, (-(-height // 32) * 32, -(-width // 32) * 32))[0]
    found, labels = boxes(f'photo {name}', 7, (height, width), 6)
    return whole[:height, :width], found, labels, np.arange(7) == 6


JPEG_SIZE = (51, 77)
# case: how the photo is encoded, as tf.io.encode_jpeg takes it.
JPEGS = {
    'fine': {'quality': 96, 'chroma_downsampling': False},
    'usual': {'quality': 90},
    'coarse': {'quality': 40},
    'progressive': {'quality': 85, 'progressive': True},
    'gray': {'quality': 85, 'format': 'grayscale'},
}


def jpeg_pixels(name: str) -> np.ndarray:
    """u8[*JPEG_SIZE,3], or of one channel for 'gray', to be encoded."""
    height, width = JPEG_SIZE
    pixels = images(f'jpeg {name}', 1, (64, 96))[0, :height, :width]
    return pixels[..., :1] if name == 'gray' else pixels

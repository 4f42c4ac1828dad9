"""Which formulations each kind of device computes fastest, and where that was measured.

A policy is chosen by whoever runs a model (`policy_of` of the device it runs on) and handed to
`models.build`; nothing below asks which devices there are, so that a program for another machine
can be written anywhere. The same sums in another order: results differ by rounding alone.
"""

import dataclasses
import math

import jax


@dataclasses.dataclass(frozen=True)
class Policy:
    """Where to leave XLA's own way of computing; the defaults never do.

    Attributes:
      name: for logs and tools.
      stem_on_cells: whether the stem works on cells of 4x4 pixels (`cells.py`).
      deepest_strips: the deepest level whose maps are cut into strips (`strips.py`); 0 cuts none.
      products_below: batches smaller than this compute 1x1 convolutions as matrix products
        (`pointwise.py`).
      unstrided_gradient: whether a strided convolution's gradient by its input is a convolution
        of stride 1 (`strided_gradient.py`).
      winograd_3x3: whether 3x3 convolutions are Winograd's where that is less work, and their
        gradients by the kernel matrix products (`convolution_cpu.py`).
      shifted_depthwise: whether a depthwise convolution is a sum of shifted maps
        (`depthwise.py`).
      shifted_pools: whether a max-pool is the maximum of shifted maps (`pooling.py`).
      roi_align: the formulation of crops, 'gather' or 'einsum' (`ops/roi_align.py`).
      donates_state: whether a training step may overwrite the state that it is given. XLA's CPU
        compiler copies every such array before it does.
    """

    name: str
    stem_on_cells: bool = False
    deepest_strips: float = 0
    products_below: float = 0
    unstrided_gradient: bool = False
    winograd_3x3: bool = False
    shifted_pools: bool = False
    shifted_depthwise: bool = False
    roi_align: str = 'gather'
    donates_state: bool = True


# All is left to XLA: GPUs, and programs that are analysed, exported or read.
PLAIN = Policy('plain')

# docs/cpu_log.md. XLA's 1x1 convolutions lose to products at every batch size.
CPU = Policy(
    'cpu',
    products_below=math.inf,
    winograd_3x3=True,
    shifted_pools=True,
    shifted_depthwise=True,
    donates_state=False,
)

# TPU v2 and v3; docs/tpu_log.md, first to third round. A batch of 8 fills the 8 sublanes of a
# vector register by itself, and from there on convolutions beat products. Strips gain nothing below
# level 2, as these compilers spread wide maps well.
TPU_V3 = Policy(
    'tpu_v3',
    stem_on_cells=True,
    deepest_strips=2,
    products_below=8,
    unstrided_gradient=True,
    roi_align='einsum',
)

# TPU v4 and later; docs/tpu_log.md, fourth round. Their compilers copy between layouts from one
# convolution to the next unless the maps of all levels are in strips.
TPU = dataclasses.replace(TPU_V3, name='tpu', deepest_strips=math.inf)


def policy_of(device: jax.Device) -> Policy:
    """The policy for programs that run on `device`."""
    if device.platform == 'tpu':
        return TPU_V3 if device.device_kind in ('TPU v2', 'TPU v3') else TPU
    return CPU if device.platform == 'cpu' else PLAIN

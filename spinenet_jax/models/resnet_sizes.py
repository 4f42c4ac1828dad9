"""Depths and widths of ResNets as data: `resnet.py` builds the network, the conversion names it."""

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # blocks of each stage
STAGE_FILTERS = (64, 128, 256, 512)
FIRST_LEVEL = 2  # of the first stage

"""How convolutions, pools and norms are computed on each kind of device."""

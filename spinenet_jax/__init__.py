"""SpineNet in JAX and Flax: backbones, RetinaNet detection, training and evaluation."""

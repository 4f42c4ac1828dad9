"""Classification's task: from labels to cross-entropy, from logits to the five best classes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from spinenet_jax.ops import losses
from spinenet_jax.ops.images import normalise

BEST = 5  # classes that a prediction names
Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class ClassificationTask:
    """One label an image (SpineNet paper, section 5).

    Attributes:
      image_size: (height, width) of the network's input, pixels.
      num_classes: outputs; output 0, background, is trained as a class that nothing is and is
        never predicted.
      label_smoothing: share of the target that is spread over all outputs, in [0, 1).
    """

    image_size: tuple[int, int]
    num_classes: int
    label_smoothing: float = 0.0

    device_keys_train = ('image', 'content_size', 'label')
    device_keys_eval = ('image', 'content_size')

    def images(self, batch: Batch) -> jax.Array:
        """The network's input, f32[B,H,W,3]: normalised."""
        return normalise(batch['image'], batch['content_size'])

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """{'label': i32[B]}, from 1 to num_classes - 1."""
        return {'label': batch['label']}

    def counts(self, targets: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The number of images, which the sums are divided by."""
        return {'images': jnp.float32(targets['label'].shape[0])}

    def sums(self, outputs: jax.Array, targets: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """This device's summed cross-entropy and number of right answers, f32 scalars.

        Args:
          outputs: f32[B,K] logits.
          targets: of the same images.
        """
        label = targets['label']
        entropy = losses.cross_entropy(outputs, label, self.label_smoothing)
        right = jnp.argmax(outputs, -1) == label
        return {'entropy': jnp.sum(entropy), 'right': jnp.sum(right, dtype=jnp.float32)}

    def loss(
        self, sums: dict[str, jax.Array], counts: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """The mean cross-entropy, and the share of images whose best output is their label."""
        return {
            'loss': sums['entropy'] / counts['images'],
            'accuracy': sums['right'] / counts['images'],
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """The best classes of each image, best first; of equal ones the lower label.

        Returns:
          scores f32[B,n], probabilities among all outputs, and classes i32[B,n] (labels, from 1);
          n is 5, or all classes where there are fewer.
        """
        del batch
        known = jax.nn.softmax(outputs)[:, 1:]
        scores, classes = jax.lax.top_k(known, min(BEST, self.num_classes - 1))
        return {'scores': scores, 'classes': classes.astype(jnp.int32) + 1}

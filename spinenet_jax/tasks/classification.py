"""Image classification: cross-entropy, accuracy, and the five best classes of an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from spinenet_jax.data.batch import Category, Example, Rows, Source
from spinenet_jax.evaluation.classification import ClassificationEvaluator
from spinenet_jax.ops.images import normalise
from spinenet_jax.tasks.records import BestClasses, ClassRecords
from spinenet_jax.tasks.task import Batch, Scalars

BEST = 5  # classes that a prediction names
Targets = dict[str, jax.Array]


@dataclass(frozen=True)
class ClassificationTask:
    """One label an image (SpineNet paper, section 5).

    The methods are those of `tasks.task.Task`.

    Attributes:
      rows: crops with labels.
      num_classes: outputs; output 0, background, is trained as a class that nothing is and is
        never predicted.
      label_smoothing: share of the target that is spread over all outputs, in [0, 1).
    """

    rows: Rows
    num_classes: int
    label_smoothing: float = 0.0

    streams = ('dropout',)
    main_metric = 'top1'

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input, pixels."""
        height, width, _ = self.rows.eval.fields['image'].shape
        return height, width

    def targets(self, batch: Batch) -> Targets:
        """{'label': i32[B]}, from 1 to num_classes - 1."""
        return {'label': batch['label']}

    def forward(self, model: nn.Module, batch: Batch, *, train: bool) -> jax.Array:
        """f32[B,K] logits."""
        return model(normalise(batch['image'], batch['content_size']), train=train)

    def normalisers(self, outputs: jax.Array, targets: Targets) -> Scalars:
        """The number of images."""
        del outputs
        return {'images': jnp.float32(targets['label'].shape[0])}

    def numerators(self, outputs: jax.Array, targets: Targets) -> Scalars:
        """Summed cross-entropy, and the number of right answers."""
        label = targets['label']
        target = jax.nn.one_hot(label, self.num_classes)
        target = optax.losses.smooth_labels(target, self.label_smoothing)
        entropy = optax.losses.softmax_cross_entropy(outputs, target)
        right = jnp.argmax(outputs, -1) == label
        return {'entropy': jnp.sum(entropy), 'right': jnp.sum(right, dtype=jnp.float32)}

    def losses(self, numerators: Scalars, normalisers: Scalars) -> Scalars:
        """The mean cross-entropy, and the share of images whose best output is their label."""
        return {
            'loss': numerators['entropy'] / normalisers['images'],
            'accuracy': numerators['right'] / normalisers['images'],
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> Mapping[str, jax.Array]:
        """The best classes of each image, best first; of equal ones the lower label.

        Returns:
          scores f32[B,n], probabilities among all outputs, and classes i32[B,n] (labels, from 1);
          n is 5, or all classes where there are fewer.
        """
        del batch
        known = jax.nn.softmax(outputs)[:, 1:]
        scores, classes = jax.lax.top_k(known, min(BEST, self.num_classes - 1))
        return {'scores': scores, 'classes': classes.astype(jnp.int32) + 1}

    def evaluator(self, source: Source) -> ClassificationEvaluator:
        """Top-1 and top-5 accuracy."""
        return ClassificationEvaluator(source)

    def found(self, row: Example) -> BestClasses:
        """The best classes of one image."""
        return BestClasses(row['scores'], row['classes'])

    def records(self, categories: Sequence[Category]) -> ClassRecords:
        """Images with their classes."""
        return ClassRecords(categories)

    def picture(
        self,
        image: np.ndarray,
        found: BestClasses,
        names: Mapping[int, str],
        *,
        min_score: float,
        side: int,
    ) -> None:
        """Nothing is drawn: there is nothing to point at."""

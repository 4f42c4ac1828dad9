"""The contract of a task: what training, evaluation and prediction ask of it.

A task is what a model is trained for: detection, classification. It says what a batch holds, how
the model is run, what the loss is made of, what is predicted, and how that is scored and shown.
The steps (training/step.py) own every collective and know no task.

One training step on each device, in this order:

    targets     = task.targets(batch)                      once, on the device's whole batch
    outputs     = task.forward(model, batch, train=True)   a micro-batch at a time from here on
    normalisers = task.normalisers(outputs, targets)       summed over devices and micro-batches
    numerators  = task.numerators(outputs, targets)        differentiated; summed likewise
    losses      = task.losses(numerators, normalisers)     of the sums

Arrays in a batch, targets and outputs lead with the images of a device (or of a micro-batch);
numerators, normalisers and losses are scalars.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from flax import linen as nn

from spinenet_jax.data.batch import Category, Example, Rows, Source
from spinenet_jax.evaluation.evaluator import Evaluator

Batch = Mapping[str, jax.Array]
Scalars = dict[str, jax.Array]  # f32 scalars by name
Targets = TypeVar('Targets')  # a pytree of arrays that lead with the images
Outputs = TypeVar('Outputs')  # likewise
Found = TypeVar('Found')  # what was found in one image, on the host, in pixels of that image
FoundIn = TypeVar('FoundIn', contravariant=True)


class Records(Protocol[FoundIn]):
    """Collects what was found in images that belong to no data set, for predictions.json."""

    @property
    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """All that was added, as JSON values."""

    def add(self, path: str, size: tuple[int, int], found: FoundIn) -> str:
        """Add an image file of `size` (h, w); returns a line to print about it, '' for none."""

    def summary(self, min_score: float) -> str:
        """A few words to print at the end, '' for none; `min_score` is what pictures show."""


class Task(Protocol[Targets, Outputs, Found]):
    """See the module's docstring. An implementation is a frozen dataclass of plain values."""

    @property
    def rows(self) -> Rows:
        """How images become rows of training and evaluation batches, and what the rows hold."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input, pixels."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the random streams that the forward pass in training draws from.

        'dropout' is what the models' own layers use. Each stream is its own function of seed,
        step, device and micro-batch; one more does not change the draws of the others.
        """

    @property
    def main_metric(self) -> str:
        """The metric, of those of its evaluator, that the best checkpoint is chosen by."""

    # On the devices, inside a jitted function.

    def targets(self, batch: Batch) -> Targets:
        """What is computed from a training batch alone, before the forward pass."""

    def forward(self, model: nn.Module, batch: Batch, *, train: bool) -> Outputs:
        """Run the model.

        Args:
          model: bound to its variables: call it or its methods, or draw from
            `model.make_rng(stream)` in training. `model(images, train=False)` on f32[B,H,W,3]
            must create every parameter: that is how weights are drawn and costs counted.
          batch: with the ground truth in training, as two-stage detectors need; as `rows.eval`
            says in evaluation.
          train: in training, batch statistics are used and updated.
        """

    def normalisers(self, outputs: Outputs, targets: Targets) -> Scalars:
        """What the numerators are divided by: counts. No gradient flows through them.

        Where they depend on the targets alone, the compiler drops the forward pass that
        accumulation of gradients would otherwise run for them first.
        """

    def numerators(self, outputs: Outputs, targets: Targets) -> Scalars:
        """Sums of losses over the images, and of whatever else `losses` reports."""

    def losses(self, numerators: Scalars, normalisers: Scalars) -> Scalars:
        """The numbers to report, from sums over the global batch; 'loss' is what is minimised.

        'loss' must be linear in the numerators: a device differentiates what its own numerators
        contribute, and the gradients are added up.
        """

    def predictions(self, outputs: Outputs, batch: Batch) -> Mapping[str, jax.Array]:
        """What is predicted, from an evaluation forward pass; arrays that lead with the images.

        Together with the batch's entries but the image they are the rows that the evaluator and
        `found` get.
        """

    # On the host.

    def evaluator(self, source: Source) -> Evaluator:
        """A fresh evaluator for one pass over `source`."""

    def found(self, row: Example) -> Found:
        """What was found in one image, from its row of predictions and batch entries."""

    def records(self, categories: Sequence[Category]) -> Records[Found]:
        """Where to collect what was found; `categories` name the labels they have."""

    def picture(
        self,
        image: np.ndarray,
        found: Found,
        names: Mapping[int, str],
        *,
        min_score: float,
        side: int,
    ) -> np.ndarray | None:
        """Draw what was found on its image; None for a task that draws nothing.

        Args:
          image: u8[h,w,3] RGB; it is not changed.
          found: in that image.
          names: of labels; one without is drawn as a number.
          min_score: what is less certain is not drawn.
          side: longer side of the picture, pixels.

        Returns:
          u8[h',w',3] RGB.
        """

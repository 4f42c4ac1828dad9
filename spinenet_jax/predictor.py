"""Runs a trained model from Python: a notebook, a script, another program.

    import spinenet_jax

    model = spinenet_jax.load('runs/digits')
    found = model.predict('photo.jpg')
    picture = model.draw('photo.jpg', found)

Reading the run is left to `inference`, running the model to `prediction`.
"""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax import config as jax_config

from spinenet_jax import inference, prediction
from spinenet_jax.data.batch import NO_RECORD
from spinenet_jax.data.decode import BadImageError, read_image
from spinenet_jax.errors import UserError
from spinenet_jax.training.distributed import use_compilation_cache
from spinenet_jax.visualize import class_colour, draw_label, fit

LARGEST_BATCH = 8  # images over all devices; `eval.batch_size` may be smaller
Image = str | os.PathLike | np.ndarray  # a file, or u8[h,w,3] RGB
Found = TypeVar('Found')


class Result(Generic[Found]):
    """What was found in one image, best first.

    Attributes:
      found: as the task gives it: `tasks.records.Detections`, `Instances` or `BestClasses`.
      names: the class name of each; the number of a class whose name is not known.
      size: (height, width) of the image, pixels.
    """

    def __init__(self, found: Found, names: list[str], size: tuple[int, int]) -> None:
        self.found, self.names, self.size = found, names, size

    @property
    def boxes(self) -> np.ndarray:
        """f32[D,4] (ymin, xmin, ymax, xmax) in pixels of the image; of detectors only."""
        return self.found.boxes

    @property
    def scores(self) -> np.ndarray:
        """f32[D] in [0, 1]."""
        return self.found.scores

    @property
    def labels(self) -> np.ndarray:
        """i32[D], from 1."""
        return self.found.labels

    @property
    def masks(self) -> np.ndarray:
        """bool[D,h,w], the pixels of each object; of instance segmentation only.

        It takes D*h*w bytes; `found.masks` has the same as run lengths.
        """
        from pycocotools import mask as coco_mask

        if not self.found.masks:
            return np.zeros((0, *self.size), bool)
        return np.moveaxis(coco_mask.decode(self.found.masks), -1, 0).astype(bool)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        best = [f'{n} {s:.2f}' for n, s in zip(self.names, self.scores.tolist(), strict=True)]
        rest = f', and {len(best) - 5} more' if len(best) > 5 else ''
        return f'<{len(best)} found: {", ".join(best[:5])}{rest}>' if best else '<nothing found>'


class Predictor:
    """A trained model that runs on images. `load` makes one.

    Attributes:
      trained: config, weights and classes; see `inference.Trained`.
    """

    def __init__(self, trained: inference.Trained) -> None:
        self.trained = trained
        self._names = {c.label: c.name for c in trained.categories}
        self._variables: Mapping[str, Any] | None = None  # on the devices, once something runs
        self._features = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their labels; empty where they are not known."""
        return [c.name for c in self.trained.categories]

    @property
    def step(self) -> int:
        """The training step of the weights."""
        return self.trained.step

    def __repr__(self) -> str:
        config = self.trained.config
        height, width = self.trained.task.image_size
        classes = len(self._names) or config.model.num_classes - 1
        return (
            f'<{config.task} model of step {self.step}: {classes} classes, '
            f'{height} x {width} pixels>'
        )

    def predict(self, images: Image | Iterable[Image]) -> Result | list[Result]:
        """Runs the model.

        It is compiled twice at most: when it first gets one image, and when it first gets several.

        Args:
          images: a file, or an array u8[h,w,3] RGB; or any number of them, also as u8[n,h,w,3].

        Returns:
          A `Result` for one image, a list for several.

        Raises:
          UserError: names the image that cannot be used, and why.
        """
        several, given = _listed(images)
        if self._variables is None:
            self._variables = prediction.placed_variables(self.trained)
        size = 1 if len(given) < 2 else min(LARGEST_BATCH, self.trained.config.eval.batch_size)
        results = []
        for found in prediction.predict(
            self.trained,
            given,
            variables=self._variables,
            batch_size=size,
        ):
            if found.image is None:
                raise UserError(f'{found.path}: {found.problem}')
            labels = found.found.labels.tolist()
            names = [self._names.get(label, str(label)) for label in labels]
            results.append(Result(found.found, names, found.image.shape[:2]))
        return results if several else results[0]

    def draw(self, image: Image, found: Result, min_score: float = 0.3) -> np.ndarray:
        """A picture of an image with what was found in it.

        Args:
          image: what `predict` was given.
          found: what it returned.
          min_score: what is less certain is not drawn. A classifier's best class always is.

        Returns:
          u8[h,w,3] RGB; small images are enlarged, so that labels can be read.
        """
        pixels = self._pixels(image)
        if pixels.shape[:2] != found.size:
            raise UserError(
                f'the image has {pixels.shape[1]}x{pixels.shape[0]} pixels, and what was found is '
                f'of one with {found.size[1]}x{found.size[0]}'
            )
        side = prediction.picture_side(pixels)
        picture = self.trained.task.picture(
            pixels, found.found, self._names, min_score=min_score, side=side
        )
        if picture is not None:
            return picture
        picture = fit(pixels, np.zeros((0, 4)), side)[0]
        if len(found):
            words = f'{found.names[0]} {100 * found.scores[0]:.0f}%'
            draw_label(picture, words, (0, 0), class_colour(int(found.labels[0])))
        return picture

    def features(
        self, images: Image | Iterable[Image]
    ) -> dict[int, np.ndarray] | list[dict[int, np.ndarray]]:
        """The backbone's feature pyramid; images are scaled and normalised as in evaluation.

        Args:
          images: as for `predict`.

        Returns:
          {level: f32[h,w,C]}, where h and w are 1/2**level of the network's input; for several
          images a list.
        """
        several, given = _listed(images)
        rows = [self.trained.task.rows.eval(NO_RECORD, self._pixels(image)) for image in given]
        if self._features is None:
            step = inference.make_feature_step(self.trained)
            variables = {'params': self.trained.params, 'batch_stats': self.trained.batch_stats}
            self._features = partial(step, jax.device_put(variables))
        results = []
        for row in rows:
            maps = self._features(row['image'][None], row['content_size'][None])
            results.append({level: np.asarray(x)[0] for level, x in jax.device_get(maps).items()})
        return results if several else results[0]

    def _pixels(self, image: Image) -> np.ndarray:
        """u8[h,w,3] RGB of one image."""
        _, (given,) = _listed([image])
        if isinstance(given, np.ndarray):
            return given
        try:
            return read_image(given, None, self.trained.config.data.max_pixels)
        except BadImageError as error:
            raise UserError(f'{given}: {error}') from error


def load(run: str | os.PathLike, checkpoint: str | int = 'best') -> Predictor:
    """The trained model of a run, ready for images.

    Compiled programs are kept on the disk, as the scripts do it, unless JAX's compilation cache has
    been set up otherwise.

    Args:
      run: workdir of a run of train.py or of a converted checkpoint, also in a bucket; or one of
        its checkpoints (`runs/digits/checkpoints/875`).
      checkpoint: 'best' by the evaluations during training, 'latest', or a step.

    Raises:
      UserError: there is no run or checkpoint, or it is of another model than its config.
    """
    if not jax_config.jax_compilation_cache_dir:
        use_compilation_cache()
    config = inference.read_config(run)
    return Predictor(inference.load_trained(config, run, str(checkpoint)))


def _listed(images: Image | Iterable[Image]) -> tuple[bool, list[str | np.ndarray]]:
    """Whether several images were given, and all of them as file names or checked arrays."""
    if isinstance(images, str | os.PathLike):
        return False, [os.fspath(images)]
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    if isinstance(images, Iterable) and not isinstance(images, np.ndarray):
        return True, [_checked(image, f'image {n}') for n, image in enumerate(images)]
    return False, [_checked(images, 'the image')]


def _checked(image: Any, name: str) -> str | np.ndarray:
    """One image as a file name or an array that is fit to be used."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    wanted = 'must be a file name or a numpy array uint8[height, width, 3] of RGB'
    if not isinstance(image, np.ndarray):
        raise UserError(f'{name} is a {type(image).__name__}: {wanted}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        shape = ', '.join(map(str, image.shape))
        raise UserError(f'{name} is {image.dtype}[{shape}]: {wanted}')
    return np.ascontiguousarray(image)

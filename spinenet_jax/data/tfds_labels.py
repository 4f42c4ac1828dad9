"""Reads a prepared TFDS classification data set by position, without TensorFlow.

`imagenet2012`, `i_naturalist2017` and any data set with the features image and label, prepared as
ArrayRecord:

    tfds build imagenet2012 --file_format=array_record

Preparing needs TensorFlow, reading does not. Finding and opening are tfds.py's.
"""

from spinenet_jax.data.batch import LABEL, Category, Record, Unreadable, assign_labels
from spinenet_jax.data.tfds import open_split, prepared_directory
from spinenet_jax.errors import UserError


class TfdsLabels:
    """A split of a TFDS classification data set, see `batch.Source`.

    TFDS's label k, from 0, is label k + 1 here: 0 is background. A label that the data set keeps
    secret (TFDS writes -1, as in the test split of `i_naturalist2017`) stays -1; such an image is
    neither trained on nor scored.
    """

    provides = LABEL
    ground_truth = None  # there are no boxes

    def __init__(self, name: str, split: str, data_dir: str = '', num_classes: int = 0):
        """Opens the data set; UserError where it is not there or not readable by position.

        `data_dir` '' means $TFDS_DATA_DIR or ~/tensorflow_datasets. `num_classes` counts the
        model's outputs with background, 0 for as many as needed.
        """
        directory = prepared_directory(name, data_dir)
        self.name = f'{name}:{split}'
        self._data, features = open_split(name, directory, split)
        try:
            _, names = features['image'], features['label'].names
        except (KeyError, AttributeError):
            raise UserError(
                f'{directory}: want the features image and label, as imagenet2012'
            ) from None
        self.categories: list[Category] = assign_labels(list(enumerate(names, 1)), num_classes)
        self.report: list[str] = []
        self.unreadable = Unreadable()
        self.image_ids = range(len(self._data))

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        example = self._data[index]
        label = int(example['label'])
        return Record(
            image=example['image'],
            image_id=index,
            size=None,
            label=label + 1 if label >= 0 else -1,
        )

    def describe(self, index: int) -> str:
        """The file name of record `index` where the data set keeps it."""
        name = self._data[index].get('file_name', f'record {index}')
        return name.decode() if isinstance(name, bytes) else name

"""TFDS classification through a small real ArrayRecord data set, built without TensorFlow."""

import io
import sys

import cv2
import numpy as np
import pytest

from configs import common
from spinenet_jax.data.batch import LABEL
from spinenet_jax.data.build import build_source, label_rows, train_batches
from spinenet_jax.data.decode import read_image
from spinenet_jax.data.tfds_labels import TfdsLabels
from spinenet_jax.errors import UserError

tfds = pytest.importorskip('tensorflow_datasets')


class Insects(tfds.core.GeneratorBasedBuilder):
    """Features of imagenet2012, two labels; the test split keeps them secret."""

    VERSION = tfds.core.Version('1.0.0')
    url_infos = {}  # noqa: RUF012  (nothing is downloaded; spares a look for checksum files)

    def _info(self):
        features = {
            'image': tfds.features.Image(encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(names=['ant', 'bee']),
            'file_name': tfds.features.Text(),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {
            'train': self._generate_examples((0, 1, 0, 1)),
            'test': self._generate_examples((-1, -1, -1, -1)),
            'mixed': self._generate_examples((1, -1, 1, -1)),
        }

    def _generate_examples(self, labels):
        for n, label in enumerate(labels):
            gray = cv2.imencode('.jpg', np.full((8, 6, 3), 60 * n, np.uint8))[1].tobytes()
            yield n, {'image': io.BytesIO(gray), 'label': label, 'file_name': f'{n}.jpg'}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp('tfds')
    Insects(data_dir=str(path), file_format='array_record').download_and_prepare()
    return str(path)


def test_labels_start_at_one(data_dir):
    source = TfdsLabels('insects', 'train', data_dir)
    assert len(source) == 4 and list(source.image_ids) == [0, 1, 2, 3]
    assert [tuple(c) for c in source.categories] == [(1, 1, 'ant'), (2, 2, 'bee')]
    for index in range(4):
        number = int(source.describe(index).removesuffix('.jpg'))
        assert source[index]['label'] == number % 2 + 1
        assert abs(int(read_image(source[index]['image'])[0, 0, 0]) - 60 * number) <= 1
    assert 'tensorflow' not in sys.modules


def test_secret_labels_stay_secret(data_dir):
    assert TfdsLabels('insects', 'test', data_dir)[0]['label'] == -1


def settings(data_dir, split):
    config = common.get_config().data
    config.update({'source': 'tfds_labels', 'tfds_name': 'insects', 'root': data_dir})
    config.update({'train_split': split, 'image_size': (16, 16), 'num_threads': 1})
    return config


def test_a_split_without_labels_is_not_trained_on(data_dir):
    with pytest.raises(UserError, match='insects:test: has no labels to train on'):
        build_source(settings(data_dir, 'test'), 'train', 0, LABEL)
    assert len(build_source(settings(data_dir, 'test'), 'test', 0, LABEL)) == 4


def test_images_without_a_label_are_replaced_and_counted(data_dir):
    """The label -1 once trained the last class."""
    config = settings(data_dir, 'mixed')
    source = TfdsLabels('insects', 'mixed', data_dir)
    process = {'process_index': 0, 'process_count': 1}
    row = label_rows(config).train
    stream = train_batches(source, row, config, batch_size=4, seed=0, start_step=0, **process)
    assert next(stream)['label'].tolist() == [2, 2, 2, 2]
    stream.close()
    assert source.unreadable.count == 2 and 'it has no label' in source.unreadable.summary()


def test_mistakes_are_one_line(data_dir):
    with pytest.raises(UserError, match='2 categories but the model 2 channels'):
        TfdsLabels('insects', 'train', data_dir, num_classes=2)
    with pytest.raises(UserError, match='no split "val"; there are'):
        TfdsLabels('insects', 'val', data_dir)
    with pytest.raises(UserError, match='no prepared data set: run `tfds build imagenet2012'):
        TfdsLabels('imagenet2012', 'train', data_dir)

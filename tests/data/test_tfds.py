"""TFDS through a small real ArrayRecord data set, built here without TensorFlow."""

import io
import shutil
import sys

import cv2
import numpy as np
import pytest

from configs import common
from spinenet_jax.data.batch import BOXES, Category
from spinenet_jax.data.build import build_source
from spinenet_jax.data.tfds import _COCO_IDS, TfdsSource
from spinenet_jax.errors import UserError

tfds = pytest.importorskip('tensorflow_datasets')


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Features of coco/2017 with three labels."""

    VERSION = tfds.core.Version('1.0.0')
    url_infos = {}  # noqa: RUF012  (nothing is downloaded; spares a look for checksum files)

    def _info(self):
        objects = {
            'area': np.int64,
            'bbox': tfds.features.BBoxFeature(),
            'id': np.int64,
            'is_crowd': np.bool_,
            'label': tfds.features.ClassLabel(names=['ant', 'bee', 'cow']),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(encoding_format='jpeg'),
                    'image/filename': tfds.features.Text(),
                    'image/id': np.int64,
                    'objects': tfds.features.Sequence(objects),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(), 'validation': self._generate_examples()}

    def _generate_examples(self):
        for n in range(5):
            # 40x80 pixels: rows 10..30, columns 20..60, as fractions
            box = tfds.features.BBox(ymin=0.25, xmin=0.25, ymax=0.75, xmax=0.75)
            thing = {'area': 700, 'bbox': box, 'id': n, 'is_crowd': n == 1, 'label': 2}
            gray = np.full((40, 80, 3), 20 * n, np.uint8)
            yield (
                n,
                {
                    'image': io.BytesIO(cv2.imencode('.jpg', gray)[1].tobytes()),
                    'image/filename': f'{n}.jpg',
                    'image/id': 500 + n,
                    'objects': [thing] * (n % 3),
                },
            )


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp('tfds')
    Shapes(data_dir=str(path), file_format='array_record').download_and_prepare()
    return path


def test_reads_records_without_tensorflow(data_dir):
    source = TfdsSource('shapes', 'train', data_dir=str(data_dir))
    assert len(source) == 5
    assert source.categories[2] == Category(3, 3, 'cow')
    by_id = {source[i]['image_id']: source[i] for i in range(5)}
    assert sorted(by_id) == [500, 501, 502, 503, 504] == sorted(source.image_ids)
    assert by_id[500]['boxes'].shape == (0, 4)
    assert by_id[501]['is_crowd'].tolist() == [True]
    record = by_id[502]
    np.testing.assert_allclose(record['boxes'], [[10, 20, 30, 60]] * 2)
    assert record['labels'].tolist() == [3, 3]
    assert record['size'] == (40, 80)
    image = cv2.imdecode(np.frombuffer(record['image'], np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (40, 80, 3)
    assert source.describe(source.image_ids.index(502)) == '2.jpg'
    assert 'tensorflow' not in sys.modules


def test_objects_of_no_class_are_left_out(data_dir):
    """TFDS writes label -1 for one that is secret; it once became the last class."""
    source = TfdsSource('shapes', 'train', data_dir=str(data_dir))
    index = source.image_ids.index(502)
    example = source._data[index]
    example['objects']['label'] = np.array([-1, 2])
    source._data = [example]
    assert source[0]['labels'].tolist() == [3]
    assert [a['category_id'] for a in source.ground_truth['annotations']] == [3]


def test_ground_truth_from_the_features(data_dir):
    source = TfdsSource('shapes', 'validation', data_dir=str(data_dir))
    truth = source.ground_truth
    assert len(truth['images']) == 5
    assert len(truth['annotations']) == 0 + 1 + 2 + 0 + 1
    crowd = next(a for a in truth['annotations'] if a['image_id'] == 501)
    assert crowd['bbox'] == [20, 10, 40, 20] and crowd['area'] == 700 and crowd['iscrowd'] == 1
    assert sorted(a['id'] for a in truth['annotations']) == [1, 2, 3, 4]


def official(make_coco, coco_json, rows, first=500, categories=None):
    """The path of a JSON with the five images, by default with the labels of TFDS from 1."""
    names = [{'id': n, 'name': name} for n, name in enumerate(('ant', 'bee', 'cow'), 1)]
    data = coco_json(5, rows, categories=categories or names)
    for n, image in enumerate(data['images']):
        image['id'] = first + n
    return str(make_coco(data) / 'annotations/instances_train.json')


def test_official_json_gives_ids_and_ground_truth(data_dir, make_coco, coco_json):
    names = [{'id': 5, 'name': 'cow'}, {'id': 9, 'name': 'ant'}, {'id': 2, 'name': 'bee'}]
    row = {'image_id': 502, 'category_id': 5, 'bbox': [1, 2, 3, 4], 'area': 5.5}
    path = official(make_coco, coco_json, [row], categories=names)
    options = {'data_dir': str(data_dir), 'annotations': path}
    source = TfdsSource('shapes', 'train', num_classes=10, **options)
    assert source.categories == [(2, 2, 'bee'), (5, 5, 'cow'), (9, 9, 'ant')]
    record = source[source.image_ids.index(502)]
    assert record['labels'].tolist() == [5, 5]
    assert source.ground_truth['annotations'][0]['area'] == 5.5


def test_a_slice_is_scored_against_its_own_images(data_dir, make_coco, coco_json):
    """All images of the JSON once counted as missed."""
    rows = [{'image_id': 500 + n, 'category_id': 3, 'bbox': [1, 2, 3, 4]} for n in range(5)]
    path = official(make_coco, coco_json, rows)
    source = TfdsSource('shapes', 'train[:2]', data_dir=str(data_dir), annotations=path)
    truth = source.ground_truth
    assert sorted(i['id'] for i in truth['images']) == sorted(source.image_ids)
    assert sorted(a['image_id'] for a in truth['annotations']) == sorted(source.image_ids)
    assert len(truth['categories']) == 3


def test_official_json_of_another_split_is_refused(data_dir, make_coco, coco_json):
    """It once gave an AP of 0. Training, which takes only category ids from it, may go on."""
    path = official(make_coco, coco_json, [], first=503)
    source = TfdsSource('shapes', 'train', data_dir=str(data_dir), annotations=path)
    with pytest.raises(UserError, match=r'lacks images of shapes:train \(first: id 50[0-2]\)'):
        source.ground_truth  # noqa: B018
    config = common.get_config().data
    config.update({'source': 'tfds', 'tfds_name': 'shapes', 'root': str(data_dir)})
    path = official(make_coco, coco_json, [], first=900)
    config.update({'train_split': 'train', 'eval_split': 'validation', 'annotations': path})
    assert len(build_source(config, 'train', 0, BOXES)) == 5
    with pytest.raises(UserError, match='annotations are of another split'):
        build_source(config, 'eval', 0, BOXES)


def test_official_json_must_know_the_names(data_dir, make_coco, coco_json):
    root = make_coco(coco_json())
    path = str(root / 'annotations/instances_train.json')
    with pytest.raises(UserError, match='no category "ant"'):
        TfdsSource('shapes', 'train', data_dir=str(data_dir), annotations=path)


def test_coco_ids():
    assert len(_COCO_IDS) == 80
    # Positions known from COCO's own list: person 1, stop sign 13, cat 17, toothbrush 90.
    assert (_COCO_IDS[0], _COCO_IDS[11], _COCO_IDS[15], _COCO_IDS[-1]) == (1, 13, 17, 90)


def test_mistakes_are_told(data_dir, tmp_path):
    with pytest.raises(UserError, match=r'tfds build coco/2017 --file_format=array_record'):
        TfdsSource('coco/2017', 'train', data_dir=str(tmp_path))
    with pytest.raises(UserError, match='no split "train2017"; there are train, validation'):
        TfdsSource('shapes', 'train2017', data_dir=str(data_dir))


@pytest.mark.parametrize(
    ('split', 'reason'),
    [
        ('train[:abc]', 'Unrecognized split format'),
        ('train[5', 'Unrecognized split format'),
        ('train[:2]+nosuch', "Unknown split 'nosuch'"),
        ('train ', 'Unrecognized split format'),
        ('', 'Unrecognized split format'),
        ('all[:2]', 'does not support slice'),
        ('train[9:]', 'incompatible with 5 examples'),
        ('train+validation[3:3]', r'"validation\[3:3\]" is empty'),
    ],
)
def test_splits_that_cannot_be_are_one_line(data_dir, split, reason):
    with pytest.raises(UserError, match=reason) as error:
        TfdsSource('shapes', split, data_dir=str(data_dir))
    assert str(data_dir) in str(error.value) and '\n' not in str(error.value)
    assert split in str(error.value)


@pytest.mark.parametrize(
    ('split', 'images'),
    [('train+validation', 10), ('train[:2] + validation[3:]', 4), ('train[:40%]', 2)],
)
def test_slices_and_sums_are_read(data_dir, split, images):
    source = TfdsSource('shapes', split, data_dir=str(data_dir))
    assert len(source) == len(source.image_ids) == images


def test_tfrecord_is_refused_with_the_command(data_dir, tmp_path):
    shutil.copytree(data_dir / 'shapes', tmp_path / 'shapes')
    info = tmp_path / 'shapes/1.0.0/dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(UserError, match=r'not prepared as ArrayRecord.*array_record'):
        TfdsSource('shapes', 'train', data_dir=str(tmp_path))

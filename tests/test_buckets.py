"""Workdirs in a bucket: the files of a run, on a file system in memory instead of the network."""

import json
import sys

import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from configs import common
from spinenet_jax import buckets, inference, launch
from spinenet_jax.data.batch import Category
from spinenet_jax.errors import UserError
from spinenet_jax.evaluation import report
from spinenet_jax.evaluation.runner import EvaluationResult
from spinenet_jax.prediction_files import PredictionFolder
from spinenet_jax.tasks.records import DetectionRecords
from spinenet_jax.training import metrics, workdir
from spinenet_jax.training.metrics import MetricsLog

CATEGORIES = [Category(1, 7, 'cat')]


class Bucket(MemoryFileSystem):
    """A file system in memory under the name of Google's storage."""

    protocol = 'gs'
    store = {}  # noqa: RUF012  (as in the class it is made from)
    pseudo_dirs = ['']  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return '/' + path.removeprefix('gs://').strip('/')


@pytest.fixture
def bucket(monkeypatch):
    """gs://runs, empty."""
    monkeypatch.setitem(sys.modules['fsspec.registry']._registry, 'gcs', Bucket)
    monkeypatch.setattr(buckets, 'PACKAGES', {'gs': 'fsspec'})
    monkeypatch.setattr(metrics, '_open_board', lambda *_: None)  # has a client of its own
    Bucket.store.clear()
    return 'gs://runs'


def files():
    return sorted(name.removeprefix('/runs/') for name in Bucket.store)


def test_files_of_a_run(bucket):
    config = common.get_config()
    folder = workdir.create(f'{bucket}/mine')
    workdir.record_config(folder, config)
    workdir.record_config(folder, config)
    workdir.record_categories(folder, CATEGORIES)
    log = MetricsLog(folder, 0)
    log.write(1, {'loss': 0.5})
    log.write(2, {'loss': 0.25})
    log.close()
    assert {'mine/config.json', 'mine/categories.json', 'mine/metrics.jsonl'} <= set(files())
    assert inference.read_config(folder).to_dict() == config.to_dict()
    assert inference.read_categories(folder) == CATEGORIES
    again = MetricsLog(folder, 1)  # drops what lies beyond its first step
    again.close()
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [1]


def test_results(bucket):
    result = EvaluationResult({'AP': 0.5}, {'cat': 0.5}, [], images=1, skipped=0, seconds=1.0)
    report.write_files(f'{bucket}/results', result, {'step': 3})
    assert files() == ['results/detections.json', 'results/results.json']


def test_predictions(bucket):
    picture = np.zeros((4, 5, 3), np.uint8)
    for _ in range(2):
        folder = PredictionFolder(f'{bucket}/out', ['a.jpg'])
        assert folder.write_picture('a.jpg', picture) == 'a.jpg'
        folder.write_records(DetectionRecords(CATEGORIES).as_dict, last=True)
    assert files() == ['out/a.jpg', 'out/predictions.json']
    epath.Path(f'{bucket}/out/predictions.json').write_text('{}')
    with pytest.raises(UserError, match=r'gs://runs/out/predictions\.json: not made by'):
        PredictionFolder(f'{bucket}/out', ['a.jpg'])


@pytest.mark.parametrize(
    ('path', 'words'),
    [
        ('s3://runs/x', 's3:// needs the package missing_package: pip install missing_package'),
        ('abc://runs', 'unknown kind: want a folder here, or gs:// and s3://'),
        ('gs://', 'the name of the bucket is missing'),
    ],
)
def test_what_cannot_be_reached_is_one_line(path, words, monkeypatch):
    monkeypatch.setattr(buckets, 'PACKAGES', {'gs': 'fsspec', 's3': 'missing_package'})
    for use in (workdir.create, inference.read_config):
        with pytest.raises(UserError) as error:
            use(path)
        assert str(error.value).startswith(path) and words in str(error.value)


def test_what_a_store_answers_is_one_line(bucket, monkeypatch):
    error = type('HttpError', (Exception,), {'__module__': 'gcsfs.retry'})('anonymous caller, 401')
    line, status = launch._line_of(error, '')
    assert line.startswith('the object store: HttpError: anonymous caller, 401;') and status == 1
    kind = type('ClientConnectorError', (OSError,), {'__module__': 'aiohttp.client_exceptions'})
    assert launch._line_of(kind(111, 'refused'), '')[0].startswith('the object store: ClientConn')
    protobuf = type('ParseError', (ValueError,), {'__module__': 'google.protobuf.json_format'})
    assert launch._line_of(protobuf('ours'), '') is None

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(Bucket, 'pipe_file', refuse)
    monkeypatch.setattr(Bucket, '_open', refuse)
    with pytest.raises(UserError, match=r'--workdir=gs://runs/mine: cannot be written .*401'):
        workdir.create(f'{bucket}/mine')

"""What the tests of the readers share: small COCO directories."""

import json

import cv2
import numpy as np
import pytest

CATEGORIES = [{'id': 3, 'name': 'cat'}, {'id': 7, 'name': 'dog'}]


@pytest.fixture
def make_coco(tmp_path):
    """make_coco(data, files) writes root/annotations/instances_train.json and root/train/*.

    `data` is the JSON object or raw text; `files` maps names to bytes, by default a 40x30 (w x h)
    JPEG for every image of the JSON. Returns root.
    """

    def make(data, files=None, split='train'):
        folder = tmp_path / split
        folder.mkdir(exist_ok=True)
        (tmp_path / 'annotations').mkdir(exist_ok=True)
        text = data if isinstance(data, str) else json.dumps(data)
        (tmp_path / f'annotations/instances_{split}.json').write_text(text)
        if files is None:
            files = {i['file_name']: jpeg(30, 40, n) for n, i in enumerate(data['images'])}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return tmp_path

    return make


@pytest.fixture
def coco_json():
    """coco_json(n images, annotations) -> JSON object with images 0.jpg, ... of 40x30."""

    def make(count=2, annotations=(), **changes):
        images = [
            {'id': 100 + n, 'file_name': f'{n}.jpg', 'width': 40, 'height': 30}
            for n in range(count)
        ]
        rows = [{'id': n + 1, 'iscrowd': 0, **a} for n, a in enumerate(annotations)]
        return {'images': images, 'annotations': rows, 'categories': CATEGORIES, **changes}

    return make


@pytest.fixture
def jpeg_bytes():
    """jpeg_bytes(h, w, value) -> an encoded JPEG of one gray."""
    return jpeg


def jpeg(h, w, value=0):
    image = np.full((h, w, 3), value, np.uint8)
    return cv2.imencode('.jpg', image)[1].tobytes()

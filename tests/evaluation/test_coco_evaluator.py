"""COCO scores of detections whose result is known by hand; two scorers against each other."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from spinenet_jax.evaluation.coco import METRICS, CocoEvaluator, rounded, to_xywh

CATEGORIES = [
    SimpleNamespace(label=1, id=7, name='cat'),
    SimpleNamespace(label=2, id=30, name='dog'),
]


def annotation(number, image_id, category_id, bbox, iscrowd=0):
    area = bbox[2] * bbox[3]
    return {
        'id': number,
        'image_id': image_id,
        'category_id': category_id,
        'bbox': bbox,
        'area': area,
        'iscrowd': iscrowd,
    }


def ground_truth(annotations, images=2):
    return {
        'images': [{'id': i, 'width': 400, 'height': 300} for i in range(images)],
        'categories': [{'id': c.id, 'name': c.name} for c in CATEGORIES],
        'annotations': annotations,
    }


def one(evaluator, image_id, boxes, scores, classes):
    """Adds the detections of one image."""
    evaluator.update(
        [image_id],
        np.array(boxes, np.float32).reshape(1, -1, 4),
        np.array([scores], np.float32),
        np.array([classes], np.int32),
        np.ones((1, len(scores)), bool),
    )


TWO = [annotation(0, 0, 7, [10, 20, 100, 50]), annotation(1, 1, 30, [0, 0, 200, 200])]


@pytest.fixture(params=['pycocotools', 'faster'])
def backend(request):
    if request.param == 'faster':
        pytest.importorskip('faster_coco_eval')
    return request.param


def test_perfect_detections_score_one_for_all_sizes_present(backend):
    evaluator = CocoEvaluator(ground_truth(TWO), CATEGORIES, backend)
    one(evaluator, 0, [[20, 10, 70, 110]], [0.9], [1])
    one(evaluator, 1, [[0, 0, 200, 200]], [0.8], [2])
    # 100 x 50 = 5,000 pixels is medium (32^2 to 96^2), 200 x 200 is large, none is small.
    present = [m for m in METRICS if m not in ('APs', 'ARs')]
    assert evaluator.result() == pytest.approx(dict.fromkeys(present, 1.0))
    assert evaluator.per_class() == pytest.approx({'cat': 1.0, 'dog': 1.0})


def test_categories_of_one_name_are_told_apart(backend):
    twins = [SimpleNamespace(label=c.label, id=c.id, name='cat') for c in CATEGORIES]
    evaluator = CocoEvaluator(ground_truth(TWO), twins, backend)
    one(evaluator, 0, [[20, 10, 70, 110]], [0.9], [1])
    one(evaluator, 1, [], [], [])
    assert evaluator.per_class() == pytest.approx({'cat (7)': 1.0, 'cat (30)': 0.0})


def test_no_detection_scores_zero(backend):
    evaluator = CocoEvaluator(ground_truth(TWO), CATEGORIES, backend)
    evaluator.update(
        [0, 1], np.zeros((2, 3, 4)), np.zeros((2, 3)), np.ones((2, 3)), np.zeros((2, 3), bool)
    )
    assert evaluator.detections == []
    assert set(evaluator.result().values()) == {0.0}
    assert evaluator.result()['AP'] == 0.0
    assert evaluator.per_class() == {'cat': 0.0, 'dog': 0.0}


def test_shifted_box_counts_at_the_thresholds_its_overlap_reaches(backend):
    evaluator = CocoEvaluator(ground_truth([TWO[1]]), CATEGORIES, backend)
    # Shift right by 40 of 200: intersection 160 x 200, union 240 x 200, IoU = 2/3.
    one(evaluator, 1, [[0, 40, 200, 240]], [0.5], [2])
    result = evaluator.result()
    # Right at 0.50, 0.55, 0.60, 0.65 of the ten thresholds 0.50, 0.55, ..., 0.95.
    assert result['AP'] == pytest.approx(0.4)
    assert result['AP50'] == pytest.approx(1.0)
    assert result['AP75'] == 0.0
    assert result['AR100'] == pytest.approx(0.4)


def test_false_positive_ranked_first_halves_precision(backend):
    evaluator = CocoEvaluator(ground_truth([TWO[1]]), CATEGORIES, backend)
    one(evaluator, 1, [[0, 0, 50, 50], [0, 0, 200, 200]], [0.9, 0.8], [2, 2])
    # Recall 1 is reached at the second detection, where precision is 1/2.
    assert evaluator.result()['AP'] == pytest.approx(0.5)
    assert evaluator.result()['AR1'] == 0.0
    assert evaluator.result()['AR10'] == pytest.approx(1.0)


def test_wrong_class_is_a_miss_and_a_false_positive(backend):
    evaluator = CocoEvaluator(ground_truth([TWO[1]]), CATEGORIES, backend)
    one(evaluator, 1, [[0, 0, 200, 200]], [0.9], [1])
    assert evaluator.result()['AP'] == 0.0


def test_detection_inside_a_crowd_is_neither_right_nor_wrong(backend):
    crowd = annotation(2, 1, 30, [210, 0, 150, 250], iscrowd=1)
    evaluator = CocoEvaluator(ground_truth([TWO[1], crowd]), CATEGORIES, backend)
    one(evaluator, 1, [[10, 220, 60, 270], [0, 0, 200, 200]], [0.9, 0.8], [2, 2])
    assert evaluator.result()['AP'] == pytest.approx(1.0)


def test_image_without_annotations_can_only_cost_precision(backend):
    evaluator = CocoEvaluator(ground_truth([TWO[1]]), CATEGORIES, backend)
    one(evaluator, 0, [[0, 0, 90, 90]], [0.9], [2])
    one(evaluator, 1, [[0, 0, 200, 200]], [0.8], [2])
    assert evaluator.result()['AP'] == pytest.approx(0.5)


def test_only_updated_images_are_scored(backend):
    evaluator = CocoEvaluator(ground_truth(TWO), CATEGORIES, backend)
    one(evaluator, 1, [[0, 0, 200, 200]], [0.8], [2])
    assert evaluator.result()['AP'] == pytest.approx(1.0)
    assert evaluator.per_class() == pytest.approx({'dog': 1.0})


def test_whole_split_counts_images_never_passed(backend):
    evaluator = CocoEvaluator(ground_truth(TWO), CATEGORIES, backend, whole_split=True)
    one(evaluator, 1, [[0, 0, 200, 200]], [0.8], [2])
    assert evaluator.per_class() == pytest.approx({'cat': 0.0, 'dog': 1.0})
    assert evaluator.result()['AP'] == pytest.approx(0.5)


def test_annotation_numbered_zero_counts(backend):
    # A scorer that keeps the numbers takes a match with annotation 0 for no match.
    evaluator = CocoEvaluator(ground_truth([TWO[0]]), CATEGORIES, backend)
    one(evaluator, 0, [[20, 10, 70, 110]], [0.9], [1])
    assert evaluator.result()['AP'] == pytest.approx(1.0)


@pytest.mark.parametrize('annotations', [None, [], [annotation(1, 0, 7, [0, 0, 9, 9], iscrowd=1)]])
def test_nothing_to_find_gives_no_metrics_but_keeps_detections(backend, annotations):
    truth = None if annotations is None else ground_truth(annotations)
    evaluator = CocoEvaluator(truth, CATEGORIES, backend)
    one(evaluator, 0, [[20, 10, 70, 110]], [0.9], [1])
    assert evaluator.result() == {}
    assert evaluator.per_class() == {}
    assert [rounded(d) for d in evaluator.detections] == [
        {'image_id': 0, 'category_id': 7, 'bbox': [10, 20, 100, 50], 'score': 0.9}
    ]


def test_padding_unknown_labels_and_repeated_images_are_left_out():
    evaluator = CocoEvaluator(ground_truth(TWO), CATEGORIES)
    boxes = np.array([[[0, 0, 5, 5], [np.nan] * 4, [1, 1, 5, 5]]], np.float32)
    scores, classes = np.ones((1, 3)), np.array([[1, 1, 55]])
    evaluator.update([0], boxes, scores, classes, np.array([[True, False, True]]))
    evaluator.update([0], boxes, scores, classes, np.array([[True, False, True]]))
    assert [d['bbox'] for d in evaluator.detections] == [[0, 0, 5, 5]]


def test_updating_after_a_result_changes_the_result():
    evaluator = CocoEvaluator(ground_truth(TWO), CATEGORIES)
    one(evaluator, 0, [[20, 10, 70, 110]], [0.9], [1])
    assert evaluator.result()['AP'] == pytest.approx(1.0)
    one(evaluator, 1, [], [], [])
    assert evaluator.result()['AP'] == pytest.approx(0.5)


def test_both_scorers_agree_and_leave_the_ground_truth_alone():
    pytest.importorskip('faster_coco_eval')
    rng = np.random.default_rng(0)
    truth = ground_truth([], images=15)
    found = []
    for image_id in range(15):
        corner, size = rng.uniform(0, 150, (8, 2)), rng.uniform(5, 140, (8, 2))
        labels = rng.integers(1, 3, 8)
        for (y, x), (h, w), label in zip(corner, size, labels, strict=True):
            record = annotation(len(truth['annotations']), image_id, 0, [x, y, w, h])
            record |= {'category_id': {1: 7, 2: 30}[label], 'iscrowd': int(rng.random() < 0.1)}
            truth['annotations'].append(record)
        boxes = np.concatenate([corner, corner + size], 1).repeat(2, 0) + rng.normal(0, 5, (16, 4))
        found.append((image_id, boxes, rng.random(16), labels.repeat(2)))
    untouched = copy.deepcopy(truth)
    results = []
    for backend in ('pycocotools', 'faster'):
        evaluator = CocoEvaluator(truth, CATEGORIES, backend)
        for image in found:
            one(evaluator, *image)
        results.append(evaluator.result() | evaluator.per_class())
    assert results[0] == pytest.approx(results[1], abs=1e-12)
    assert 0.1 < results[0]['AP'] < 0.9
    assert set(METRICS) <= set(results[0])
    assert truth == untouched


def test_scoring_prints_and_logs_nothing(backend, capsys, caplog):
    caplog.set_level('DEBUG')
    evaluator = CocoEvaluator(ground_truth(TWO), CATEGORIES, backend)
    one(evaluator, 0, [[20, 10, 70, 110]], [0.9], [1])
    evaluator.result()
    assert capsys.readouterr().out == ''
    assert 'recall' not in caplog.text.lower()
    assert 'evaluate' not in caplog.text.lower()


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match='unknown backend'):
        CocoEvaluator(None, CATEGORIES, 'matlab')


def test_scores_closer_than_a_written_digit_keep_their_order(backend):
    evaluator = CocoEvaluator(ground_truth([TWO[1]]), CATEGORIES, backend)
    # The right box comes second and is better by 4e-7, which six digits do not show. Taken for a
    # tie, the wrong box would stay first, and precision at recall 1 would be 1/2.
    one(evaluator, 1, [[0, 0, 50, 50], [0, 0, 200, 200]], [0.5, 0.5000004], [2, 2])
    assert evaluator.result()['AP'] == pytest.approx(1.0)


def test_boxes_are_scored_to_less_than_a_hundredth_of_a_pixel(backend):
    # 12 x 12 against 12 x 9: an overlap of 3/4 counts at AP75. Short of it by 0.004 pixels it does
    # not, but two digits would make it 9.00 again.
    truth = ground_truth([annotation(0, 0, 7, [0, 0, 12, 12])])
    for height, expected in ((9.0, 1.0), (8.996, 0.0)):
        evaluator = CocoEvaluator(truth, CATEGORIES, backend)
        one(evaluator, 0, [[0, 0, height, 12]], [0.9], [1])
        assert evaluator.result()['AP75'] == pytest.approx(expected)


def test_to_xywh():
    assert to_xywh([20, 10, 70, 110.5]) == [10, 20, 100.5, 50]


def test_a_written_detection_is_short_and_the_scored_one_stays_as_it_is():
    detection = {'image_id': 3, 'bbox': [1.23456, 0.0, 7.0, 8.999], 'score': 0.12345678}
    assert rounded(detection) == {'image_id': 3, 'bbox': [1.23, 0.0, 7.0, 9.0], 'score': 0.123457}
    assert detection['score'] == 0.12345678


def square_mask(box, size=(300, 400)):
    """The RLE of a filled (ymin, xmin, ymax, xmax)."""
    canvas = np.zeros(size, np.uint8, order='F')
    canvas[box[0] : box[2], box[1] : box[3]] = 1
    return coco_mask.encode(canvas)


def with_mask(number, image_id, category_id, box):
    """An annotation whose mask is a polygon that fills its box."""
    x, y, w, h = box
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {**annotation(number, image_id, category_id, box), 'segmentation': [corners]}


MASKED = [with_mask(0, 0, 7, [10, 20, 100, 50]), with_mask(1, 1, 30, [0, 0, 200, 200])]


def test_boxes_and_masks_side_by_side(backend):
    evaluator = CocoEvaluator(ground_truth(MASKED), CATEGORIES, backend, masks=True)
    boxes = np.array([[[20, 10, 70, 110]], [[0, 0, 200, 200]]], np.float32)
    # The first mask is right. The second leaves out three tenths of its object: IoU 0.7, right at
    # 0.5 to 0.7, which are 5 of 10 thresholds.
    masks = [[square_mask((20, 10, 70, 110))], [square_mask((0, 0, 200, 140))]]
    scores, classes = np.array([[0.9], [0.8]]), np.array([[1], [2]])
    evaluator.update([0, 1], boxes, scores, classes, np.ones((2, 1), bool), masks)
    result = evaluator.result()
    assert result['AP'] == pytest.approx(1.0)
    assert result['mask/AP'] == pytest.approx((1.0 + 0.5) / 2)
    assert result['mask/AP75'] == pytest.approx(0.5) and result['mask/AP50'] == pytest.approx(1.0)
    assert evaluator.per_class('segm') == pytest.approx({'cat': 1.0, 'dog': 0.5})
    assert evaluator.per_class() == pytest.approx({'cat': 1.0, 'dog': 1.0})
    # What is written is what COCO's server takes: text.
    for record in evaluator.detections:
        assert isinstance(record['segmentation']['counts'], str)
        assert record['segmentation']['size'] == [300, 400]


def test_an_object_without_a_mask_is_neither_missed_nor_wrong(backend):
    annotations = [MASKED[0], {k: v for k, v in MASKED[1].items() if k != 'segmentation'}]
    evaluator = CocoEvaluator(ground_truth(annotations), CATEGORIES, backend, masks=True)
    boxes = np.array([[[20, 10, 70, 110]], [[0, 0, 200, 200]]], np.float32)
    masks = [[square_mask((20, 10, 70, 110))], [square_mask((0, 0, 200, 140))]]
    classes = np.array([[1], [2]])
    evaluator.update([0, 1], boxes, np.full((2, 1), 0.9), classes, np.ones((2, 1), bool), masks)
    result = evaluator.result()
    assert result['AP'] == pytest.approx(1.0) and result['mask/AP'] == pytest.approx(1.0)
    assert evaluator.per_class('segm') == pytest.approx({'cat': 1.0})


def test_masks_score_as_pycocotools_alone(backend, tmp_path):
    rng = np.random.default_rng(0)
    annotations, rows = [], {}
    for image_id in range(6):
        found = []
        for _ in range(5):
            x, y, w, h = (int(v) for v in rng.integers([0, 0, 12, 12], [250, 150, 150, 150]))
            category = int(rng.choice([7, 30]))
            annotations.append(with_mask(len(annotations), image_id, category, [x, y, w, h]))
            shift = rng.integers(-6, 7, 4)
            box = np.maximum(np.add([y, x, y + h, x + w], shift), 0)
            found.append((box, 1 if category == 7 else 2, rng.random()))
        rows[image_id] = found
    evaluator = CocoEvaluator(ground_truth(annotations, 6), CATEGORIES, backend, masks=True)
    for image_id, found in rows.items():
        boxes, classes, scores = (np.array([x], np.float32) for x in zip(*found, strict=True))
        masks = [[square_mask(box) for box, _, _ in found]]
        evaluator.update([image_id], boxes, scores, classes, np.ones((1, 5), bool), masks)

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    numbered = [{**a, 'id': a['id'] + 1} for a in annotations]
    (tmp_path / 'truth.json').write_text(json.dumps(ground_truth(numbered, 6)))
    truth = COCO(str(tmp_path / 'truth.json'))
    for kind, prefix in (('bbox', ''), ('segm', 'mask/')):
        keys = {'image_id', 'category_id', 'score', 'bbox' if kind == 'bbox' else 'segmentation'}
        records = [{k: v for k, v in r.items() if k in keys} for r in evaluator.detections]
        scorer = COCOeval(truth, truth.loadRes(copy.deepcopy(records)), kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        ours = [evaluator.result().get(prefix + name, -1) for name in METRICS]
        np.testing.assert_allclose(ours, scorer.stats, atol=1e-9)
        assert 0 < ours[0] < 1


def test_scored_masks_must_be_given():
    evaluator = CocoEvaluator(ground_truth(MASKED), CATEGORIES, 'pycocotools', masks=True)
    with pytest.raises(ValueError, match='have none'):
        one(evaluator, 0, [[20, 10, 70, 110]], [0.9], [1])

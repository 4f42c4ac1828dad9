"""peers.py's worker for torchvision's Mask R-CNN ResNet-50-FPN v2, its dense parts compiled.

Channels last; suppression, sampling and losses stay as they are, as their shapes depend on the
data. Runs in the environment that `tools/maintenance/make_peer_env.sh torchvision` builds.
"""

import numpy as np
import peer_worker as worker
import torch
import torchvision
from peer_torchvision import tensor
from pycocotools import mask as coco_mask
from torchvision.models import detection

DEVICE = torch.device('cpu')


def detector(side: int) -> torch.nn.Module:
    """Random weights; images of `side` are not resized."""
    model = detection.maskrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=worker.CLASSES,
        min_size=side,
        max_size=side,
        box_score_thresh=worker.SCORE_THRESHOLD,
        box_nms_thresh=worker.IOU_THRESHOLD,
        box_detections_per_img=worker.DETECTIONS,
    )
    return model.to(memory_format=torch.channels_last)


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its dense parts compiled."""
    model.backbone = torch.compile(model.backbone, dynamic=False)
    model.rpn.head = torch.compile(model.rpn.head, dynamic=False)
    for name in ('box_head', 'mask_head'):  # as many regions as there are
        head = torch.compile(getattr(model.roi_heads, name), dynamic=True)
        setattr(model.roi_heads, name, head)
    return model


def dense(model: torch.nn.Module, x: torch.Tensor, regions: torch.Tensor) -> tuple:
    """Every convolution: proposals' maps, heads on `regions`, masks of the first of them."""
    heads, shape = model.roi_heads, [tuple(x.shape[2:])]
    pyramid = model.backbone(x)
    proposals = model.rpn.head(list(pyramid.values()))
    crops = heads.box_roi_pool(pyramid, [regions], shape)
    boxes = heads.box_predictor(heads.box_head(crops))
    crops = heads.mask_roi_pool(pyramid, [regions[: worker.DETECTIONS]], shape)
    return proposals, boxes, heads.mask_predictor(heads.mask_head(crops))


@torch.no_grad()
def crowd(model: torch.nn.Module, x: torch.Tensor, regions: torch.Tensor) -> int:
    """Scale predictors as `worker.region_calibration` says; returns the number of candidates."""
    box, proposal = model.roi_heads.box_predictor, model.rpn.head
    predictors = (box.cls_score, box.bbox_pred, proposal.cls_logits, proposal.bbox_pred)
    for predictor in predictors:
        predictor.bias.zero_()
    (scores, proposal_codes), (logits, codes), _ = dense(model, x, regions)
    flat = [
        np.concatenate([level.numpy().ravel() for level in part])
        for part in ([logits], [codes], scores, proposal_codes)
    ]
    for predictor, scale in zip(predictors, worker.region_calibration(*flat), strict=True):
        predictor.weight.mul_(scale)
    scores = dense(model, x, regions)[1][0].softmax(-1)[:, 1:]
    return int((scores > worker.SCORE_THRESHOLD).sum())


def instance_targets(side: int, count: int) -> list[dict[str, torch.Tensor]]:
    """`worker.instances` as torchvision takes them: masks of the whole image."""
    targets = []
    for boxes, labels, masks in zip(*worker.instances(side, count), strict=True):
        whole = np.zeros((len(boxes), side, side), np.uint8)
        for image, mask, box in zip(whole, masks, boxes.round().astype(int), strict=True):
            top, left, bottom, right = box
            rows = np.linspace(0, len(mask) - 1, bottom - top).astype(int)
            columns = np.linspace(0, len(mask) - 1, right - left).astype(int)
            image[top:bottom, left:right] = mask[rows[:, None], columns] > 0
        target = {
            'boxes': torch.from_numpy(boxes[:, [1, 0, 3, 2]].copy()),
            'labels': torch.from_numpy(labels).long(),
            'masks': torch.from_numpy(whole),
        }
        targets.append(target)
    return targets


def train_measure(spec: worker.Spec):
    """One training step as a function."""
    model = compiled(detector(spec.train_size)).train()
    x = tensor(spec, spec.train_batch, spec.train_size, DEVICE)
    targets = instance_targets(spec.train_size, spec.train_batch)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=worker.LEARNING_RATE,
        momentum=worker.MOMENTUM,
        weight_decay=worker.WEIGHT_DECAY,
    )

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model(list(x), targets).values()).backward()
        optimizer.step()

    return run


def build(spec: worker.Spec) -> worker.Peer:
    """Everything is compiled on the first call of each measure."""
    model = detector(spec.image_size).eval()
    one = tensor(spec, 1, spec.image_size, DEVICE)
    regions = torch.from_numpy(worker.regions(spec.image_size)[0][:, [1, 0, 3, 2]].copy())
    candidates = crowd(model, one, regions)
    with torch.inference_mode():
        detections = len(model(list(one))[0]['boxes'])
    model = compiled(model)

    @torch.inference_mode()
    def network() -> None:
        dense(model, one, regions)

    @torch.inference_mode()
    def end_to_end() -> None:
        for mask in model(list(one))[0]['masks']:  # one by one, as its reference evaluation does
            coco_mask.encode(np.asfortranarray(mask[0].numpy() > 0.5, np.uint8))

    square = torch.from_numpy(worker.square(spec))
    measures = {
        'network': network,
        'end_to_end': end_to_end,
        'train': train_measure(spec),
        'matmul': lambda: square @ square,
    }
    facts = {
        'model': 'Mask R-CNN ResNet-50-FPN v2',
        'dtype': 'float32',
        'candidates': candidates,
        'detections': detections,
        'versions': {'torch': torch.__version__, 'torchvision': torchvision.__version__},
    }
    return worker.Peer(facts, measures)


if __name__ == '__main__':
    worker.serve(build)

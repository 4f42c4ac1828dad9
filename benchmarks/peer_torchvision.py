"""peers.py's worker for torchvision: RetinaNet ResNet-50-FPN v2 as its users run it fastest.

Channels last, bfloat16 autocast on a GPU, backbone and head compiled by torch.compile; matching,
losses and suppression stay as they are, as their shapes depend on the data. Runs in the environment
that `tools/maintenance/make_peer_env.sh torchvision` builds.
"""

import peer_worker as worker
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection


def detector(spec: worker.Spec, side: int, device: torch.device) -> torch.nn.Module:
    """Random weights; images of `side` are not resized."""
    model = detection.retinanet_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=worker.CLASSES,
        min_size=side,
        max_size=side,
        score_thresh=worker.SCORE_THRESHOLD,
        nms_thresh=worker.IOU_THRESHOLD,
        detections_per_img=worker.DETECTIONS,
    )
    return model.to(device, memory_format=torch.channels_last)


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its dense parts compiled."""
    model.backbone = torch.compile(model.backbone, dynamic=False)
    model.head = torch.compile(model.head, dynamic=False)
    return model


def dense(model: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Class logits and box codes, all levels in one."""
    return model.head(list(model.backbone(x).values()))


@torch.no_grad()
def crowd(model: torch.nn.Module, x: torch.Tensor) -> int:
    """Scale predictors as `worker.calibration` says; returns the number of candidates."""
    classifier = model.head.classification_head.cls_logits
    regressor = model.head.regression_head.bbox_reg
    classifier.bias.zero_()
    regressor.bias.zero_()
    outputs = dense(model, x)
    logits, codes = (outputs[key].cpu().numpy() for key in ('cls_logits', 'bbox_regression'))
    logit_scale, bias, code_scale = worker.calibration(logits, codes)
    classifier.weight.mul_(logit_scale)
    classifier.bias.fill_(bias)
    regressor.weight.mul_(code_scale)
    scores = dense(model, x)['cls_logits'].sigmoid()
    return int((scores > worker.SCORE_THRESHOLD).sum())


def tensor(spec: worker.Spec, count: int, side: int, device: torch.device) -> torch.Tensor:
    """Noise in channels-last order, f32[count,3,side,side]."""
    x = torch.from_numpy(worker.images(spec, count, side)).permute(0, 3, 1, 2)
    return x.to(device, memory_format=torch.channels_last)


def train_measure(spec: worker.Spec, device: torch.device, autocast):
    """One training step as a function."""
    model = compiled(detector(spec, spec.train_size, device)).train()
    x = tensor(spec, spec.train_batch, spec.train_size, device)
    boxes, labels = worker.objects(spec.train_size, spec.train_batch)
    targets = [
        {
            'boxes': torch.from_numpy(box[:, [1, 0, 3, 2]].copy()).to(device),
            'labels': torch.from_numpy(label).long().to(device),
        }
        for box, label in zip(boxes, labels, strict=True)
    ]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=worker.LEARNING_RATE,
        momentum=worker.MOMENTUM,
        weight_decay=worker.WEIGHT_DECAY,
        fused=spec.on == 'gpu',
    )

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = sum(model(list(x), targets).values())
        loss.backward()
        optimizer.step()

    return run


def build(spec: worker.Spec) -> worker.Peer:
    """Everything is compiled on the first call of each measure."""
    gpu = spec.on == 'gpu'
    device = torch.device('cuda' if gpu else 'cpu')
    dtype = torch.bfloat16 if gpu else torch.float32
    torch.backends.cudnn.benchmark = True

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=gpu)

    def done(function):
        def run() -> None:
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            function()
            if gpu:
                torch.cuda.synchronize()

        return run

    def inference(function, x):
        def run() -> None:
            with torch.inference_mode(), autocast():
                function(x)

        return done(run)

    model = detector(spec, spec.image_size, device).eval()
    one = tensor(spec, 1, spec.image_size, device)
    candidates = crowd(model, one)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        dense(model, one)
    model = compiled(model)
    square = torch.from_numpy(worker.square(spec)).to(device, dtype)
    measures = {
        'network': inference(lambda x: dense(model, x), one),
        'end_to_end': inference(lambda x: model(list(x)), one),
        'train': done(train_measure(spec, device, autocast)),
        'matmul': done(lambda: square @ square),
    }
    for batch in spec.batches:
        x = tensor(spec, batch, spec.image_size, device)
        measures[f'throughput_{batch}'] = inference(lambda x: model(list(x)), x)
    facts = {
        'model': 'RetinaNet ResNet-50-FPN v2',
        'dtype': 'bfloat16' if gpu else 'float32',
        'candidates': candidates,
        'multiply_adds': counter.get_total_flops() // 2,
        'versions': {'torch': torch.__version__, 'torchvision': torchvision.__version__},
    }
    return worker.Peer(
        facts, measures, lambda name: torch.cuda.max_memory_allocated() if gpu else None
    )


if __name__ == '__main__':
    worker.serve(build)

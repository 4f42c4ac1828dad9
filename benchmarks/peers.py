"""Times this project and other detectors on the same machine, in one run.

    python benchmarks/peers.py --on=cpu
    python benchmarks/peers.py --on=gpu
    python benchmarks/peers.py --on=cpu --model=mask_rcnn
    python benchmarks/peers.py --on=cpu --model=mobile

Every peer runs in a Python environment of its own, which `tools/maintenance/make_peer_env.sh`
builds; one that is missing is reported as not run. All are compiled and warm before anything is
timed, and then one computes at a time, in turn, several rounds of each measure, so that a machine
that slows down slows all of them. Prints a table; with --record each line of it is also appended to
benchmarks/logs/peers.jsonl, with Mask R-CNN to peers_masks.jsonl.

Measures, images/s and seconds (median and least of all rounds):

    network       one 640 x 640 image, normalised, to class logits and box codes
    end_to_end    the same and post-processing, to 100 detections
    train         a step on 4 images of 256 x 256 with 10 boxes each (gpu: 32 of 640 x 640):
                  forward, backward, losses, SGD with momentum and weight decay
    matmul        a square matrix product, as the peer's framework does it: the machine's peak
    throughput    end_to_end at batch sizes 1 to 64; --on=gpu only

What is equal: images, their number and size, float32 (gpu: bfloat16 convolutions, float32
parameters), 91 classes, 9 anchors a cell on levels 3 to 7, score threshold 0.05, IoU threshold 0.5,
100 detections, random weights. Post-processing costs what the outputs make it cost, so every peer's
predictors are scaled: logits have mean -5 and deviation 1 over all anchors and classes, box codes
have deviation 0.3. One score in fifty is above the threshold in all of them (the log counts
'candidates'): as crowded as a busy photograph's.

What is not equal:
  - The Model Garden has the same network as ours, to the last weight. KerasHub and torchvision have
    ResNet-50-FPN, about as many multiply-adds (96.9 billion by our count, against 85.3), and
    KerasHub has no batch norm in FPN and heads.
  - Suppression: the Garden's is its default ('v2': each class alone, 5,000 candidates of each);
    'end_to_end_batched' is its other version, TensorFlow's combined suppression. KerasHub's takes
    each anchor's best class and suppresses across classes, which is less work than a class at a
    time. torchvision's takes the best 1,000 candidates of each level. Ours is exact, a class at a
    time, from 5,000 of each.
  - Training: targets are matched to anchors inside the step by ours, KerasHub and torchvision; by
    the Garden in its input pipeline, which is not timed. Ours and torchvision also normalise the
    images. KerasHub gets its batch from the host's memory, as `fit` does.
  - torchvision's end_to_end normalises and collects the images, which the others get normalised.
  - Peak memory, on a GPU: ours is what the compiler reserves for the step, torchvision's what its
    allocator held at most, with the detector for inference, which stays on the card.

With --model=mobile the measures are the same of SpineNet-Mobile 49, at 384 pixels, beside the
Garden's, which has the same network.

With --model=mask_rcnn the measures are

    network       one 640 x 640 image, normalised, to the proposals' maps, the box head's outputs
                  for 1,000 given regions and the masks of 100 of them: every convolution
    end_to_end    one image to 100 detections and their masks in it, as run-length encodings
    train         a step on 2 images of 256 x 256 with 10 objects each, from 512 regions an image

Images, float32, classes, thresholds and numbers of proposals and detections are equal again. Box
scores and codes are scaled to be as crowded as above, the scores of a softmax. Garden and
torchvision paste and encode masks one by one, with the code of their evaluations. The Garden draws
the anchors to train on in its input pipeline, which is not timed; the others in the step.
torchvision's Mask R-CNN ResNet-50-FPN v2 has levels 2 to 6 and crops its masks' targets out of
masks of the whole image; the others get them cut to the object's box.

'share_of_matrix_peak' counts a plain convolution's multiplications; ours does fewer on a CPU
(docs/cpu_log.md) and can exceed 1.
"""

import contextlib
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from spinenet_jax import launch  # noqa: E402
from spinenet_jax.errors import UserError  # noqa: E402

_ON = flags.DEFINE_enum('on', 'cpu', ['cpu', 'gpu'], 'what to measure on')
_MODEL = flags.DEFINE_enum(
    'model', 'retinanet', ['retinanet', 'mobile', 'mask_rcnn'], 'what is compared'
)
_MEASURES = flags.DEFINE_list('measures', [], 'only these; default all')
_PEERS = flags.DEFINE_list('peers', [], 'only these; default all that belong to --on')
_ENVIRONMENTS = flags.DEFINE_string('environments', '~/.cache/spinenet_peers', 'their folder')
_PYTHONS = flags.DEFINE_list('pythons', [], 'peer=path of its python, instead of the folder')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'turns of each peer a measure')
_REPEATS = flags.DEFINE_integer('repeats', 2, 'calls timed a turn')
_IMAGE_SIZE = flags.DEFINE_integer(
    'image_size', 0, 'pixels, multiple of 128; default 640, mobile 384'
)
_TRAIN_SIZE = flags.DEFINE_integer('train_size', 0, 'side, pixels; default 256, gpu 640')
_TRAIN_BATCH = flags.DEFINE_integer('train_batch', 0, 'images; default 4, gpu 32, masks 2')
_RECORD = flags.DEFINE_bool('record', False, "append to the repository's log")

PEERS = {
    ('retinanet', 'cpu'): ('ours', 'garden', 'kerashub'),
    ('retinanet', 'gpu'): ('ours', 'torchvision'),
    ('mobile', 'cpu'): ('ours', 'garden'),
    ('mask_rcnn', 'cpu'): ('ours', 'garden', 'torchvision'),
}
WORKERS = {'retinanet': 'peer_{}.py', 'mobile': 'peer_{}.py', 'mask_rcnn': 'peer_{}_masks.py'}
LOGS = {'retinanet': 'peers', 'mobile': 'peers', 'mask_rcnn': 'peers_masks'}
MEASURES = ('network', 'end_to_end', 'train', 'matmul', 'throughput')
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Worker(NamedTuple):
    """A peer that runs and waits for requests.

    Attributes:
      name: of the peer.
      process: its process.
      about: what it said when it was ready: 'facts', 'ready', 'failed', 'warm_up_s'.
    """

    name: str
    process: subprocess.Popen
    about: dict[str, Any]


def pythons(given: list[str], folder: str) -> dict[str, Path]:
    """Each peer's interpreter: ours is this one, others as given or in their folder.

    Raises:
      UserError: an entry of `given` that is not 'peer=path'.
    """
    found = {'ours': Path(sys.executable)}
    for name in ('garden', 'kerashub', 'torchvision'):
        found[name] = Path(folder).expanduser() / name / 'bin/python'
    for entry in given:
        name, separator, path = entry.partition('=')
        if name not in found or not separator:
            raise UserError(f'--pythons={entry}: give peer=path, peers are {", ".join(found)}')
        found[name] = Path(path).expanduser()
    return found


def specification(on: str) -> dict[str, Any]:
    """What the workers are asked to build; see `peer_worker.Spec`."""
    gpu, masks = on == 'gpu', _MODEL.value == 'mask_rcnn'
    return {
        'on': on,
        'model': _MODEL.value,
        'image_size': _IMAGE_SIZE.value or (384 if _MODEL.value == 'mobile' else 640),
        'train_size': _TRAIN_SIZE.value or (640 if gpu else 256),
        'train_batch': _TRAIN_BATCH.value or (32 if gpu else 2 if masks else 4),
        'batches': BATCHES if gpu else (),
        'matmul': 8192 if gpu else 2048,
        'measures': _MEASURES.value or MEASURES,
    }


def start(name: str, python: Path, spec: dict[str, Any]) -> Worker | str:
    """The warm worker of a peer, or one line on why there is none."""
    if not python.exists():
        return (
            f'no {python}: tools/maintenance/make_peer_env.sh {name} DIRECTORY, '
            f'--pythons={name}=PYTHON'
        )
    paths = [str(ROOT), str(ROOT / 'tools/maintenance')]
    if str(python) == sys.executable:  # packages of another interpreter would not fit
        paths += filter(None, [os.environ.get('PYTHONPATH')])
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(paths),
        'TF_CPP_MIN_LOG_LEVEL': '3',
    }
    if spec['on'] == 'cpu':
        environment |= {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
    # Peers share the card: none may take all of its memory beforehand.
    environment |= {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    process = subprocess.Popen(
        [python, ROOT / 'benchmarks' / WORKERS[_MODEL.value].format(name), json.dumps(spec)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    if not line.endswith('\n'):
        return f'its worker ended with status {process.wait()}; its error is above'
    return Worker(name, process, json.loads(line))


def ask(worker: Worker, measure: str, repeats: int) -> dict[str, Any]:
    """One turn: {'seconds': list, 'peak_bytes': int or None}.

    Raises:
      UserError: the worker is gone, killed for memory most likely.
    """
    try:
        worker.process.stdin.write(json.dumps([measure, repeats]) + '\n')
        worker.process.stdin.flush()
        return json.loads(worker.process.stdout.readline())
    except (BrokenPipeError, json.JSONDecodeError) as error:
        status = worker.process.wait()
        raise UserError(
            f'the worker of {worker.name} ended with status {status} in {measure!r}; what was '
            'measured before is printed above'
        ) from error


def round_robin(
    workers: list[Worker], rounds: int, repeats: int
) -> Iterator[tuple[str, dict[str, dict]]]:
    """(measure, {peer: answer with the seconds of all rounds}), the matrix product first.

    Each round starts with another peer.
    """
    measures = dict.fromkeys(name for worker in workers for name in worker.about['ready'])
    for measure in sorted(measures, key=lambda name: name != 'matmul'):
        able = [worker for worker in workers if measure in worker.about['ready']]
        found = {}
        for turn in range(rounds):
            first = turn % len(able)
            for worker in able[first:] + able[:first]:
                answer = ask(worker, measure, repeats)
                earlier = found.get(worker.name, {'seconds': []})['seconds']
                found[worker.name] = answer | {'seconds': earlier + answer['seconds']}
        yield measure, found


def check_names(what: str, given: list[str], legal: Sequence[str]) -> None:
    """UserError that lists what there is, for a name that does not exist."""
    for name in given:
        if name not in legal:
            raise UserError(f'--{what}={name}: choose of {", ".join(legal)}')


def main() -> None:
    """Start, measure, write down, stop."""
    from benchmarks import machine, peer_table

    check_names('measures', _MEASURES.value, MEASURES)
    able = PEERS.get((_MODEL.value, _ON.value))
    if able is None:
        raise UserError(f'--model={_MODEL.value}: is not compared on {_ON.value}')
    legal = {peer for (model, _), peers in PEERS.items() for peer in peers if model == _MODEL.value}
    check_names('peers', _PEERS.value, sorted(legal))
    spec = specification(_ON.value)
    interpreters = pythons(_PYTHONS.value, _ENVIRONMENTS.value)
    began, load = datetime.datetime.now().isoformat(timespec='minutes'), os.getloadavg()[0]
    workers, missing, answers = [], {}, {}
    try:
        for name in _PEERS.value or able:
            worker = start(name, interpreters[name], spec)
            if isinstance(worker, str):
                missing[name] = worker
            else:
                workers.append(worker)
                failed = worker.about['failed'].items()
                missing |= {f'{name}, {measure}': error for measure, error in failed}
        about = {worker.name: worker.about for worker in workers}
        where = {'run': began, 'on': spec['on'], 'load_before': round(load, 2)}
        for measure, found in round_robin(workers, _ROUNDS.value, _REPEATS.value):
            answers[measure] = found
            for row in peer_table.rows(answers, about, spec):
                if row['measure'] == measure:
                    facts = about[row['peer']]['facts']
                    names = ('candidates', 'detections', 'versions')
                    extra = {name: facts[name] for name in names if name in facts}
                    machine.report(LOGS[_MODEL.value], where | row | extra, _RECORD.value)
    finally:
        for worker in workers:
            with contextlib.suppress(BrokenPipeError):
                worker.process.stdin.close()
            worker.process.wait()
    print(peer_table.show(peer_table.rows(answers, about, spec)))
    for name, reason in missing.items():
        print(f'{name}: not run: {reason}')


if __name__ == '__main__':
    launch.run(main)

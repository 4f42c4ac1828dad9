"""Shares devices between a notebook and its scripts, follows a run by a live curve, shows pictures.

Needs IPython and matplotlib, which every notebook has; nothing else in the package does.
"""

import collections
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from spinenet_jax.errors import RunError, UserError
from spinenet_jax.visualize import tile

LINES_KEPT = 20  # of a script's output, to show where it ends badly
MAIN_METRICS = ('eval/AP', 'eval/top1')


def prepare() -> None:
    """Says what JAX runs on, and lets this kernel and the scripts that it starts share it.

    To be called before anything else uses JAX. By default JAX takes most of a GPU's memory at once,
    and a TPU belongs to one process: with a TPU, this kernel computes on the CPU, and leaves it to
    the scripts.

    Raises:
      RunError: JAX does not start.
    """
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    program = 'import jax; print(jax.default_backend(), jax.__version__, *jax.devices())'
    # In a process of its own: to ask for the devices is to take them.
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    if done.returncode:
        raise RunError(f'JAX does not start: {(done.stderr.strip() or "?").splitlines()[-1]}')
    backend, version, devices = done.stdout.strip().splitlines()[-1].split(' ', 2)
    print(f'JAX {version} on {devices}')
    if backend == 'tpu':
        import jax

        jax.config.update('jax_platforms', 'cpu')
        print('scripts run on the TPU, this notebook on the CPU: a TPU belongs to one process')
    if backend == 'cpu' and shutil.which('nvidia-smi'):
        print('there is a GPU that JAX does not use: pip install "jax[cuda12]", then restart')


def train(command: str, every_seconds: float = 5.0) -> None:
    """Runs train.py in a process of its own and draws its loss and scores as they come.

    Interrupting the notebook's cell makes the run save and stop; the same command continues it.

    Args:
      command: as in a shell: 'python train.py --config=... --workdir=...'.
      every_seconds: between two updates of the curve.

    Raises:
      UserError: the command names no workdir.
      RunError: it failed; the message is the end of what it printed.
    """
    from IPython.display import display

    words = shlex.split(command)
    words[0] = sys.executable if words[0] == 'python' else words[0]
    workdir = next((w.partition('=')[2] for w in words if w.startswith('--workdir=')), '')
    if not workdir:
        raise UserError(f'{command}: names no --workdir=<folder of the run>')
    metrics = os.path.join(os.path.expanduser(workdir), 'metrics.jsonl')
    printed: collections.deque[str] = collections.deque(maxlen=LINES_KEPT)
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
    )
    reader = threading.Thread(target=lambda: printed.extend(process.stdout), daemon=True)
    reader.start()
    handle = display(_Message('starting'), display_id=True)
    update = handle.update if handle else lambda _: None  # None where Python runs no notebook
    shown = 0
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(every_seconds)
            lines = read_metrics(metrics)
            if len(lines) > shown:
                update(_message_and_curve(lines, printed))
                shown = len(lines)
            elif not shown and printed:
                update(_Message(printed[-1]))
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        reader.join()
        print(printed[-1].strip() if printed else 'stopped')
        return
    reader.join()
    if process.returncode:
        raise RunError(f'{command} failed:\n{"".join(printed)}')
    update(_message_and_curve(read_metrics(metrics), printed))


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none if it is not there, without one half written."""
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split('\n')[:-1] if line]


def draw_curve(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    """The loss, and the main metric of the evaluations, over the steps, as a picture.

    Args:
      lines: from `read_metrics`.

    Returns:
      u8[h,w,3] RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout='constrained')
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = [(line['step'], line['loss']) for line in lines if 'loss' in line]
    left.plot(*zip(*losses, strict=True) if losses else ((), ()), color='#d1495b')
    left.set(title='loss', xlabel='step')
    name = next((m for m in MAIN_METRICS if any(m in line for line in lines)), MAIN_METRICS[0])
    scores = [(line['step'], line[name]) for line in lines if name in line]
    right.plot(*zip(*scores, strict=True) if scores else ((), ()), 'o-', color='#3d6fb4')
    right.set(title=f'{name.removeprefix("eval/")} on the evaluation split', xlabel='step')
    right.set_ylim(0, 1)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def show(pictures: Sequence[np.ndarray], columns: int = 3, titles: Sequence[str] = ()) -> None:
    """Shows pictures of any sizes as one sheet.

    Args:
      pictures: u8[h,w,3] RGB.
      columns: pictures a row.
      titles: of the columns.
    """
    from IPython.display import display

    columns = max(1, min(columns, len(pictures)))
    display(_png(tile(pictures, columns, size=960 // columns, titles=titles)))


def _png(picture: np.ndarray):
    from IPython.display import Image

    return Image(cv2.imencode('.png', picture[..., ::-1])[1].tobytes())


class _Message:
    """A line of text in a notebook."""

    def __init__(self, words: str) -> None:
        self._words = words.strip()

    def __repr__(self) -> str:
        return self._words


class _Curve:
    """A picture for a notebook, and the last line of the script for what shows text only."""

    def __init__(self, picture: np.ndarray, words: str) -> None:
        self._png, self._words = cv2.imencode('.png', picture[..., ::-1])[1].tobytes(), words

    def _repr_png_(self) -> bytes:
        return self._png

    def __repr__(self) -> str:
        return self._words


def _message_and_curve(lines: Sequence[dict[str, Any]], printed: Sequence[str]) -> _Curve:
    return _Curve(draw_curve(lines), printed[-1].strip() if printed else '')

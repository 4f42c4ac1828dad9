"""eval.py puts its files where it says; model and data are stand-ins, in a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from types import SimpleNamespace as Made
import eval
from configs import common
from spinenet_jax import inference, launch
from spinenet_jax.data import build
from spinenet_jax.evaluation import runner

launch.define_flags(config_required=False)
config = common.get_config()
config.data.update({'train_split': 'train', 'eval_split': 'validation'})
config.eval.expected = {'AP': (0.9, 0.1)}
task = Made(rows=Made(needs=()), main_metric='AP')
trained = Made(config=config, task=task, eval_step=None, step=7, categories=())
inference.load_trained = lambda *_: trained
build.build_source = lambda data, split, *_: Made(
    name='coco/2017:' + build.split_name(data, split), report=[], categories=()
)
runner.evaluate = lambda *_: runner.EvaluationResult({'AP': 0.5}, {}, None, 1, 0, 1.0)
for split in sys.argv[2:]:
    eval.flags.FLAGS(['eval.py', f'--workdir={sys.argv[1]}', f'--split={split}'])
    print(eval.evaluate())
"""


def test_the_runs_own_split_goes_to_the_workdir(tmp_path):
    """TFDS has the data set in the name of a split: it was once taken for another one."""
    splits = ['eval', 'validation', 'train', 'validation[:500]']
    command = [sys.executable, '-c', PROGRAM, str(tmp_path), *splits]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith('results are in')]
    folders = ['', '', '/eval-train', '/eval-validation__500_']
    assert lines == [f'results are in {tmp_path}{folder}' for folder in folders]
    assert (tmp_path / 'results.json').exists()
    mismatches = [line for line in done.stdout.splitlines() if line.startswith('[')]
    assert [line == '[]' for line in mismatches] == [False, False, True, True]  # of its own alone

"""Runs the notebooks from top to bottom, each in a kernel of its own, at small settings.

    python tools/maintenance/run_notebooks.py                     # all, in order; they share runs/
    python tools/maintenance/run_notebooks.py --only=quickstart
    python tools/maintenance/run_notebooks.py --folder=notebooks_ran   # keeps what they leave

Cells tagged `install` are left out; after the cell tagged `parameters`, `small = True` is set. A
shell command that fails is an error, which it is not where one sits before the notebook. The kernel
runs in a folder with links to this checkout, so that nothing is written into it. Prints the time of
each; an error is shown with its cell, and the exit status is 1.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.maintenance.make_notebooks import FOLDER, ORDER  # noqa: E402

LINKED = (
    'configs',
    'docs',
    'spinenet_jax',
    'tests',
    'tools',
    'train.py',
    'eval.py',
    'export.py',
    'predict.py',
    'search.py',
)
SMALL = 'small = True'
SUCCEEDED = "assert _exit_code == 0, f'the shell command ended with status {_exit_code}'"


def run(name: str, folder: Path, cell_seconds: int) -> float:
    """Runs one notebook; returns the seconds it took.

    Args:
      name: without suffix.
      folder: the kernel's working directory.
      cell_seconds: a cell that takes longer is an error.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed; ValueError: no cell has parameters.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell

    book = nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)
    tags = [cell.metadata.get('tags', []) for cell in book.cells]
    if sum('parameters' in t for t in tags) != 1:
        raise ValueError(f'{name}: wants one cell with the tag parameters')
    cells = []
    for cell, tag in zip(book.cells, tags, strict=True):
        if 'install' not in tag:
            cells.append(cell)
        if 'parameters' in tag:
            cells.append(new_code_cell(SMALL))
        runs_shell = cell.cell_type == 'code' and '\n!' in f'\n{cell.source}'
        if runs_shell and 'install' not in tag:
            cells.append(new_code_cell(SUCCEEDED))
    book.cells = cells
    began = time.monotonic()
    client = NotebookClient(
        book,
        timeout=cell_seconds,
        kernel_name='python3',
        resources={'metadata': {'path': str(folder)}},
    )
    try:
        client.execute()
    finally:
        nbformat.write(book, folder / f'{name}.ipynb')
    return time.monotonic() - began


def prepare(folder: Path) -> None:
    """Makes the folder that the kernels run in, with links to what the notebooks use."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)


def main() -> int:
    """Exit status 1: a notebook failed."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--only', choices=ORDER, help='one of them')
    parser.add_argument('--folder', type=Path, help='where they run; a temporary one if not given')
    parser.add_argument('--cell_seconds', type=int, default=900, help='longest a cell may take')
    given = parser.parse_args()
    # The kernel is that of this environment, whatever other kernels are installed.
    os.environ['PATH'] = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        prepare(folder)
        for name in [given.only] if given.only else ORDER:
            try:
                seconds = run(name, folder, given.cell_seconds)
            except (CellExecutionError, CellTimeoutError) as error:
                print(f'{name}: {error}', file=sys.stderr)
                return 1
            print(f'{name}: {seconds:.0f} s', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())

"""Makes notebooks/*.ipynb from the Python files beside them (jupytext's percent format).

    python tools/maintenance/make_notebooks.py            # after a change
    python tools/maintenance/make_notebooks.py --check    # prints the stale ones; exit status 1

What all of them begin with is written here once: the badge, the cell that installs, the cell that
shows the devices.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'notebooks'
ORDER = ('quickstart', 'own_data', 'weights_and_classification', 'search')
# Where on GitHub Colab finds the notebooks and the code that they install. A placeholder: whoever
# publishes this project sets it and runs this script; nothing else holds the address.
REPOSITORY = 'OWNER/spinenet-jax'
COLAB = 'https://colab.research.google.com'
INSTALL = f"""\
#@title Install (1 to 3 minutes on Colab; nothing to do in a checkout that is installed)
import os, shutil, sys

if 'google.colab' in sys.modules:
    tpu = os.path.exists('/dev/accel0') or os.path.exists('/dev/vfio/0')
    extra = 'tpu' if tpu else 'cuda12' if shutil.which('nvidia-smi') else 'cpu'
    # The extra brings the plugin that belongs to this version of JAX: with a plain upgrade, the old
    # one stays and everything runs on the CPU without a word.
    jax_for_this_runtime = f'jax[{{extra}}]' if extra != 'cpu' else 'jax'
    !test -d spinenet || git clone -q --depth 1 https://github.com/{REPOSITORY} spinenet
    %cd -q spinenet
    !pip install -q -r requirements.txt "{{jax_for_this_runtime}}"
elif os.path.basename(os.getcwd()) == 'notebooks':
    %cd -q .."""
CHECK = """\
from spinenet_jax import notebook

notebook.prepare()"""


def notebook(source: Path) -> str:
    """The .ipynb of a percent script, as text; equal sources give equal text."""
    import jupytext
    import nbformat
    from nbformat.v4 import new_code_cell

    book = jupytext.reads(source.read_text(encoding='utf-8'), fmt='py:percent')
    address = f'{COLAB}/github/{REPOSITORY}/blob/main/notebooks/{source.stem}.ipynb'
    badge = f'[![Open In Colab]({COLAB}/assets/colab-badge.svg)]({address})'
    first, *rest = book.cells
    first.source = f'{badge}\n\n{first.source}'
    book.cells = [
        first,
        new_code_cell(INSTALL, metadata={'tags': ['install']}),
        new_code_cell(CHECK),
        *rest,
    ]
    for number, cell in enumerate(book.cells):
        cell.id = f'cell-{number}'
    book.metadata = {
        'accelerator': 'GPU',
        'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
        'language_info': {'name': 'python'},
    }
    book.nbformat, book.nbformat_minor = 4, 5
    return nbformat.writes(book).rstrip('\n') + '\n'


def stale() -> list[str]:
    """Names of notebooks that differ from what their sources make."""
    names = []
    for name in ORDER:
        path = FOLDER / f'{name}.ipynb'
        made = notebook(path.with_suffix('.py'))
        if not path.exists() or path.read_text(encoding='utf-8') != made:
            names.append(path.name)
    return names


def main() -> int:
    """Exit status 1: with --check, one is out of date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='write nothing')
    if parser.parse_args().check:
        for name in (names := stale()):
            print(f'{name} is out of date: python tools/maintenance/make_notebooks.py')
        return int(bool(names))
    for name in ORDER:
        path = FOLDER / f'{name}.py'
        path.with_suffix('.ipynb').write_text(notebook(path), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())

"""Checks that README.md and the generated pages of docs/ are what their logs and models make them.

python tools/maintenance/check_generated_pages.py

Writes nothing. Prints each page that is out of date with the command that writes it, and then exits
with status 1. A part of .ci/run rather than of the tests: a measurement that someone records in a
checkout of their own is no defect of the code.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.maintenance import (  # noqa: E402
    evidence_page,
    growth_page,
    make_model_page,
    reliability_page,
    tpu_table,
    update_readme_tables,
)


class Page(NamedTuple):
    """A generated file.

    Attributes:
      path: where it lies.
      tool: the script that writes it.
      make: what should stand in it.
    """

    path: Path
    tool: str
    make: Callable[[], str]


def _filled(name: str) -> Page:
    """A page whose generated parts stand between comments."""
    path = ROOT / name
    return Page(
        path,
        'tools/maintenance/update_readme_tables.py',
        lambda: update_readme_tables.fill(path.read_text(), ROOT),
    )


def _growth() -> str:
    return growth_page.page(growth_page.LOG.read_text().splitlines())


def _evidence() -> str:
    return evidence_page.page(evidence_page.read(evidence_page.LOG))


def _reliability() -> str:
    logs = (reliability_page.LOG, reliability_page.FLATNESS)
    return reliability_page.page(*map(reliability_page.read, logs))


def _tpu() -> str:
    return tpu_table.page(tpu_table.read(tpu_table.LOG))


PAGES = (
    *map(_filled, update_readme_tables.PAGES),
    Page(growth_page.PAGE, 'tools/maintenance/growth_page.py', _growth),
    Page(evidence_page.PAGE, 'tools/maintenance/evidence_page.py', _evidence),
    Page(reliability_page.PAGE, 'tools/maintenance/reliability_page.py', _reliability),
    Page(tpu_table.PAGE, 'tools/maintenance/tpu_table.py', _tpu),
    Page(make_model_page.PAGE, 'tools/maintenance/make_model_page.py', make_model_page.page),
)


def stale(pages: tuple[Page, ...]) -> list[str]:
    """A line for each page that differs from what its tool would write, or is missing."""
    return [
        f'{page.path.name} is out of date: python {page.tool}'
        for page in pages
        if not page.path.exists() or page.path.read_text() != page.make()
    ]


def main() -> int:
    """Exit status 1: a page is out of date."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    lines = stale(PAGES)
    for line in lines:
        print(line)
    return int(bool(lines))


if __name__ == '__main__':
    sys.exit(main())

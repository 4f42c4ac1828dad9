"""The ledger of a search: append-only JSON lines that hold everything it knows.

One process writes. A line is on disk before `append` returns; a last line that a kill has cut off
is removed on opening. A search is resumed by reading its ledger, so nothing else is kept.

    {"event": "search", ...}                         first: what the search is
    {"event": "ask", "number": 0, "decisions": ...}  before a candidate is handed to a worker
    {"event": "tell", "number": 0, "reward": ...}    what came of it, exactly once
"""

import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any, Protocol

from etils import epath

from spinenet_jax.errors import UserError

Event = dict[str, Any]
FILE = 'ledger.jsonl'
SEGMENT_LINES = 200


class _Storage(Protocol):
    """Where lines go."""

    def read(self) -> Iterator[str]:
        """Every whole line."""

    def append(self, line: str) -> None:
        """Write a line, safe from any kill once this returns."""

    def close(self) -> None:
        """Nothing is written after this."""


class Ledger:
    """The events of a search, in the order in which they happened.

    Attributes:
      events: all of them; append with `append` only.
      cut: what was removed of a torn last line, '' if nothing was.
    """

    def __init__(self, workdir: str | os.PathLike) -> None:
        """Open or start the ledger of a workdir.

        Raises:
          UserError: another process writes it, or a line is damaged.
        """
        folder = epath.Path(workdir)
        remote = '://' in os.fspath(folder)
        self._storage = _Segments(folder / 'ledger') if remote else _File(folder / FILE)
        self.cut = getattr(self._storage, 'cut', '')
        self.events: list[Event] = []
        for number, line in enumerate(self._storage.read(), 1):
            try:
                self.events.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f'{folder / FILE}, line {number}: damaged ({error.msg}); a ledger is not edited'
                ) from error

    def append(self, event: Event) -> None:
        """Add an event; it is on disk when this returns."""
        self._storage.append(json.dumps(event, separators=(',', ':'), allow_nan=False))
        self.events.append(event)

    def close(self) -> None:
        """Let another process write."""
        self._storage.close()


class _File:
    """One local file, locked for this process."""

    def __init__(self, path: epath.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = open(path, 'a+b')  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(
                f'{path.parent}: another search writes this workdir; stop it or use another'
            ) from error
        self.cut = self._cut_torn_line()

    def read(self) -> Iterator[str]:
        with open(self._path, encoding='utf-8') as file:
            yield from (line for line in file.read().split('\n') if line)

    def append(self, line: str) -> None:
        self._file.write(line.encode() + b'\n')
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _cut_torn_line(self) -> str:
        """Removes what follows the last newline; returns it."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b'\n') + 1
        if whole < len(content):
            self._file.truncate(whole)
            os.fsync(self._file.fileno())
        return content[whole:].decode(errors='replace')


class _Segments:
    """Files of some lines each, for object stores, which replace whole objects and cannot append.

    Nothing keeps two processes from writing there.
    """

    def __init__(self, folder: epath.Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            names = sorted(path.name for path in folder.iterdir() if path.suffix == '.jsonl')
        except FileNotFoundError:  # a bucket has no empty folders
            names = []
        self._parts = [(folder / name).read_text().splitlines() for name in names]
        if not self._parts:
            self._parts.append([])

    def read(self) -> Iterator[str]:
        for part in self._parts:
            yield from part

    def append(self, line: str) -> None:
        if len(self._parts[-1]) == SEGMENT_LINES:
            self._parts[-1:] = [[], []]  # a full one is never read again
        self._parts[-1].append(line)
        path = self._folder / f'{len(self._parts) - 1:06d}.jsonl'
        path.write_text('\n'.join(self._parts[-1]) + '\n')

    def close(self) -> None:
        pass

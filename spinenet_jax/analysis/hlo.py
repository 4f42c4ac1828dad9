"""Reads the optimised HLO text of an XLA executable: operations, their cycles, and collectives.

Cycles are what the TPU compiler expects; other compilers give none.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 's64': 8, 'f64': 8}
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(')
_ARRAY = re.compile(r'\b([a-z]+[0-9]*)\[([0-9,]*)\]')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_LOOP = re.compile(r'condition=%?([\w.\-]+), body=%?([\w.\-]+)')
_LIMIT = re.compile(r'= s32\[\]\S* constant\((\d+)\)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_EITHER = re.compile(r'(?:true|false)_computation=%?([\w.\-]+)')


class Operation(NamedTuple):
    """One operation of the program as it is run.

    Attributes:
      name: its name in the HLO text.
      kind: HLO opcode: 'fusion', 'convolution', 'all-reduce', ...
      source: path of the JAX code it came from, '' where the compiler made it up.
      output: its result's type and layout, as text.
      cycles: the compiler's estimate of one run times `times`; 0 where it gives none, as for
        collectives.
      times: how often it runs in one call of the program.
    """

    name: str
    kind: str
    source: str
    output: str
    cycles: int
    times: int

    @property
    def output_bytes(self) -> int:
        """Bytes of the result without padding, of one run."""
        return sum(
            math.prod(int(n) for n in dims.split(',') if n) * _BYTES.get(kind, 4)
            for kind, dims in _ARRAY.findall(self.output)
        )


def operations(text: str) -> list[Operation]:
    """Every operation that one call of the program runs, those inside a fusion not apart.

    The body of a loop counts as often as the number that its condition compares with: a scan's
    length, or the most turns that a search like suppression can take. Of a conditional's branches
    the cheapest counts, which in this project is the usual one.

    Args:
      text: `compiled.as_text()`.
    """
    computations, entry = _split(text)

    def walk(name: str, times: int) -> Iterator[Operation]:
        for line in computations.get(name, ()):
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            instruction, output, kind = match.groups()
            if kind == 'while':
                condition, body = _LOOP.search(line).groups()
                limits = _LIMIT.findall('\n'.join(computations.get(condition, ())))
                yield from walk(body, times * max(map(int, limits), default=1))
            elif kind == 'conditional':
                branches = [list(walk(branch, times)) for branch in _branches(line)]
                yield from min(branches, key=lambda run: sum(o.cycles for o in run))
            else:
                cycles, source = _CYCLES.search(line), _SOURCE.search(line)
                yield Operation(
                    instruction,
                    kind,
                    source[1] if source else '',
                    output,
                    times * int(cycles[1]) if cycles else 0,
                    times,
                )

    return list(walk(entry, 1))


def _split(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the entry's name."""
    computations, entry, lines = {}, '', []
    for line in text.splitlines():
        if line.startswith(('%', 'ENTRY')) and (match := _COMPUTATION.match(line)):
            lines = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.startswith('  '):
            lines.append(line)
    return computations, entry


def _branches(line: str) -> list[str]:
    listed = _BRANCHES.search(line)
    if listed:
        return [name.strip().lstrip('%') for name in listed[1].split(',')]
    return _EITHER.findall(line)


class Collectives(NamedTuple):
    """Collectives of one kind and place: how many, and the bytes of their results together."""

    count: int
    bytes: int


def collectives(found: list[Operation]) -> dict[str, Collectives]:
    """Collectives by place: 'forward' and 'backward' of the network, and 'other'.

    Inside the network only batch norm communicates; 'other' are gradients, counts and losses in
    training, and gathered detections in evaluation.

    Args:
      found: as `operations` gives them. An asynchronous collective counts once, at its start.
    """
    totals: dict[str, Collectives] = {}
    for operation in found:
        if operation.kind.removesuffix('-start') not in COLLECTIVES:
            continue
        in_network = re.search(r'norm\w*/', operation.source)
        backward = 'backward' if 'transpose(' in operation.source else 'forward'
        place = backward if in_network else 'other'
        before = totals.get(place, Collectives(0, 0))
        totals[place] = Collectives(
            before.count + operation.times,
            before.bytes + operation.times * operation.output_bytes,
        )
    return totals

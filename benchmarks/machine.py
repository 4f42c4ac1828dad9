"""Where a measurement was made and how it is written down, for every benchmark of this folder."""

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

LOGS = Path(__file__).resolve().parent / 'logs'


def cpu_name() -> str:
    """Name of the processor, from Linux where it says more than Python."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def record(benchmark: str, result: dict[str, Any], log: str = '') -> None:
    """Print a result as one JSON line and append it to the benchmark's log.

    Args:
      benchmark: its name, also of the file in `logs`.
      result: JSON values; machine, versions and date are added.
      log: another file to append to.
    """
    where = {
        'benchmark': benchmark,
        'date': datetime.date.today().isoformat(),
        'machine': cpu_name(),
        'cores': os.cpu_count(),
        'python': platform.python_version(),
    }
    line = json.dumps({**where, **result})
    print(line)
    path = Path(log) if log else LOGS / f'{benchmark}.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        file.write(line + '\n')


def family(root: Path = Path('/proc'), pid: int | None = None) -> list[int]:
    """This process and all that it started, and they in turn, by number. Linux only."""
    parents = {}
    for path in root.glob('[0-9]*/stat'):
        try:
            after_name = path.read_text().rpartition(')')[2].split()
        except OSError:  # gone meanwhile
            continue
        parents[int(path.parent.name)] = int(after_name[1])
    found = [os.getpid() if pid is None else pid]
    for member in found:  # grows
        found += sorted(child for child, parent in parents.items() if parent == member)
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time that a running process has used, user and system."""
    after_name = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return sum(map(int, after_name[11:13])) / os.sysconf('SC_CLK_TCK')


def memory_mb(pid: int) -> float:
    """Memory of a running process, what it shares with others counted in shares (PSS)."""
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('Pss:')) / 1024


def compute() -> dict[str, Any]:
    """What JAX computes on, and how busy the machine was before."""
    import jax

    return {
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'jax': jax.__version__,
        'load_before': round(os.getloadavg()[0], 2),
    }


def model_name(config: Any) -> str:
    """A short name for the model of a config, from what it is built of."""
    model = config.model
    body = f'resnet{model.depth}_fpn' if model.backbone == 'resnet_fpn' else model.graph
    return f'{body} width {model.width:g} repeats {model.block_repeats}'

"""Where a measurement was made and how it is written down, for every benchmark of this folder."""

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import psutil

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


def family() -> list[psutil.Process]:
    """This process, all that it started, and they in turn."""
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Processor time that running processes have used, user and system."""
    times = [process.cpu_times() for process in processes]
    return sum(t.user + t.system for t in times)


def memory_mb(processes: list[psutil.Process]) -> float:
    """Memory of running processes; what they share with others counts in shares (PSS, Linux)."""
    return sum(process.memory_full_info().pss for process in processes) / 2**20


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

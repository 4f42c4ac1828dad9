"""Describes the machine of a measurement and writes results down, for every benchmark here."""

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


def report(benchmark: str, result: dict[str, Any], record: bool) -> None:
    """Print a result as one JSON line and, if asked to, append it to the repository's log.

    Args:
      benchmark: its name, also of the file in `logs`.
      result: JSON values; machine, versions and date are added.
      record: whether to append; what a reader of the README runs leaves the checkout as it was.
    """
    where = {
        'benchmark': benchmark,
        'date': datetime.date.today().isoformat(),
        'machine': cpu_name(),
        'cores': os.cpu_count(),
        'python': platform.python_version(),
    }
    line = json.dumps({**where, **result})
    print(line, flush=True)
    if record:
        LOGS.mkdir(parents=True, exist_ok=True)
        with (LOGS / f'{benchmark}.jsonl').open('a') as file:
            file.write(line + '\n')


def family() -> list[psutil.Process]:
    """This process and all that it started, and they in turn."""
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Processor time that running processes have used together, user and system."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def memory_mb(processes: list[psutil.Process]) -> float:
    """Memory of running processes together.

    Pages that several share count once (proportional set size); where the system does not tell
    that, only pages that a process has alone count (unique set size).
    """
    memory = [process.memory_full_info() for process in processes]
    return sum(getattr(info, 'pss', info.uss) for info in memory) / 2**20


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

"""Train as train.py does, up to the first finished step, and print when each part was done.

    python benchmarks/startup_probe.py --began=<Unix seconds> --config=... --workdir=...

A part of benchmarks/startup.py, which starts it in a process of its own. Prints one JSON line of
seconds and leaves the process at once, without a checkpoint.
"""

import json
import os
import sys
import time
from pathlib import Path

from absl import flags

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

COMPILATION = {  # what JAX reports of itself
    '/jax/core/compile/jaxpr_trace_duration': 'tracing_s',
    '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lowering_s',
    '/jax/core/compile/backend_compile_duration': 'xla_s',
}
PROGRAMS = ('draw', '_fun')  # the initial weights and, under pmap's name for it, the step


class Laps:
    """Seconds of one part after the other, from the start of the process."""

    def __init__(self, began: float):
        self.began = self.last = began
        self.seconds: dict[str, float] = {}

    def done(self, part: str) -> None:
        """The part that was going on since the last call is done."""
        now = time.time()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now


def listen(monitoring, totals: dict[str, float]) -> None:
    """Adds up what JAX reports: outermost seconds of compiling, programs found in the cache."""

    def duration(event, seconds, **facts):
        program = facts.get('fun_name', '').removeprefix('jit(').removesuffix(')')
        if event in COMPILATION and program in PROGRAMS:
            totals[COMPILATION[event]] = totals.get(COMPILATION[event], 0.0) + seconds

    def event(name, **_):
        for word in ('cache_hits', 'cache_misses'):
            if name == f'/jax/compilation_cache/{word}':
                totals[word] = totals.get(word, 0) + 1

    monitoring.register_event_duration_secs_listener(duration)
    monitoring.register_event_listener(event)


def main() -> None:
    """train.py's main, with a stopwatch at its joints."""
    laps, totals = Laps(flags.FLAGS.began), {'cache_hits': 0, 'cache_misses': 0}
    launch.start_jax()

    import jax

    from spinenet_jax.training import loop

    laps.done('imports_s')
    listen(jax.monitoring, totals)

    def timed(name, part):
        function = getattr(loop, name)

        def call(*arguments):
            result = jax.block_until_ready(function(*arguments))
            laps.done(part)
            return result

        setattr(loop, name, call)

    def first_step(monitor, step, metrics):
        laps.done('step_compile_s')
        jax.block_until_ready(metrics)
        laps.done('first_step_s')
        total = {'start_to_first_step_s': laps.last - laps.began}
        print(json.dumps(total | laps.seconds | totals), flush=True)
        os._exit(0)

    timed('build_experiment', 'data_s')
    timed('create_state', 'init_s')
    loop.StepMonitor.push = first_step
    loop.train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == '__main__':
    from spinenet_jax import launch

    launch.define_flags()
    flags.DEFINE_float('began', None, 'when the process was started, Unix seconds', required=True)
    launch.run(main)

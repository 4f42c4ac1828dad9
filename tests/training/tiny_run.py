"""The real loop on the tiny model as a process of its own: python tiny_run.py WORKDIR [flags].

Flags: --process=ID --processes=N --address=HOST:PORT join several; --epochs=E; --pause=SECONDS
waits in front of every batch, so that a signal meets the run on its way.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument('workdir')
    parser.add_argument('--process', type=int, default=-1)
    parser.add_argument('--processes', type=int, default=0)
    parser.add_argument('--address', default='')
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--pause', type=float, default=0.0)
    flags = parser.parse_args()

    from spinenet_jax.training import distributed

    distributed.initialise(flags.address, flags.processes, flags.process)

    import dataclasses

    from tiny import TinyModel, stream, tiny_config, tiny_experiment

    from spinenet_jax.training import loop
    from spinenet_jax.training.preempt import PreemptionWatch

    config = tiny_config(epochs=flags.epochs, checkpoint_every_steps=1000, eval_every_epochs=1000)

    def batches(start):
        for batch in stream(start, config.train.batch_size, config.seed):
            time.sleep(flags.pause)
            yield batch

    # Dropout off: its draws belong to a device, and devices differ in number here.
    experiment = dataclasses.replace(tiny_experiment(config), model=TinyModel(), batches=batches)
    result = loop.run(config, flags.workdir, experiment, PreemptionWatch())
    print('finished' if result.finished else 'stopped', int(result.state.step), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())

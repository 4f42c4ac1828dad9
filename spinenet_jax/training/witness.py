"""Says the last word for a process that may end without a chance to say one.

A process of a run that loses its coordinator is ended by JAX's C++ runtime with an abort and a
stack trace; one that runs out of memory is killed. This small program is started beside each
process of a run of several, outlives it, and prints one line unless it was told that the end is in
order. It is run as a file, and imports nothing but the standard library.
"""

import json
import os
import signal
import socket
import sys

CONNECT_SECONDS = 3.0
AGAIN = 'start the same command again on every host to go on from there'


def main() -> None:
    """Reads facts as JSON lines from standard input until the process on the other end is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    facts = {}
    for line in sys.stdin:
        try:
            facts.update(json.loads(line))
        except ValueError:  # cut off by the end of the process
            break
    if not facts.get('in_order', False):
        print(last_line(facts), file=sys.stderr, flush=True)


def last_line(facts: dict) -> str:
    """What became of the process, as far as can be seen from outside."""
    index, count = facts.get('index', 0), facts.get('count', 1)
    address = facts.get('address', '')
    if index != 0 and address and not answers(address):
        what = f'process 0, which coordinates at {address}, was lost'
    else:
        what = f'process {index} of {count} was killed, crashed, or lost another one'
    return f'error: {what}; {checkpoint_words(_newest(facts))}{AGAIN}'


def checkpoint_words(step: int | None) -> str:
    """'the last checkpoint is 12; ', or that there is none."""
    return 'there is no checkpoint yet; ' if step is None else f'the last checkpoint is {step}; '


def answers(address: str) -> bool:
    """Whether someone listens there."""
    host, _, port = address.rpartition(':')
    try:
        with socket.create_connection((host.strip('[]'), int(port)), CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def _newest(facts: dict) -> int | None:
    """The newest checkpoint in a local folder, else the one that was last told."""
    try:
        steps = [int(name) for name in os.listdir(facts.get('folder', '')) if name.isdigit()]
    except OSError:
        return facts.get('checkpoint')
    return max(steps, default=None)


if __name__ == '__main__':
    main()

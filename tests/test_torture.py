"""What torture.py and flatness.py of tools/maintenance judge by; the runs are in .ci/run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.maintenance import flatness, torture

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ('status', 'out', 'errors', 'problem'),
    [
        (0, 'finished 20\n', '', ''),
        (0, 'stopped 7\n', '', ''),
        (0, '', 'x\ninterrupted: step 8 is saved\n', ''),
        (130, '', 'interrupted: there was nothing new to save\n', ''),
        (0, '', '', 'end'),
        (1, '', 'error: something\n', 'end'),
        (130, '', 'interrupted\nTraceback (most recent call last):\n', 'traceback'),
        (None, '', '', 'hang'),
    ],
)
def test_how_a_run_may_end(status, out, errors, problem):
    found = torture.judge(status, out, errors)
    assert bool(found) == bool(problem) and all(problem in text for text in found[:1])


def test_a_trial_names_the_command_that_repeats_it():
    assert torture.Trial('kill', 3, 1, 0, '', []).command.endswith('torture.py --repeat=kill:3')
    fuzzed = torture.Trial('tf', 200, 0, 200, '', []).command
    assert fuzzed == 'python tools/maintenance/fuzz.py --kind=tf --count=200 --seed=200'


def test_time_is_shared_out_as_said():
    groups = {name: lambda seed, n=name: torture.Trial(n, seed, 0, 0, '', []) for name in 'ab'}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torture, 'SHARES', {'a': 0.75, 'b': 0.25})
        clock = iter(range(10_000))
        patched.setattr(torture.time, 'monotonic', lambda: next(clock))
        trials = list(torture.campaign(groups, 2, seed=1))
    assert trials[0].seed == 1000 and len({(t.group, t.seed) for t in trials}) == len(trials)
    assert 2 < sum(t.group == 'a' for t in trials) / sum(t.group == 'b' for t in trials) < 4


def test_a_fault_is_met_by_python(tmp_path):
    library = torture.build_faults(tmp_path)
    if library is None:
        pytest.skip('no C compiler')
    folder = tmp_path / 'run'
    folder.mkdir()
    program = f'open({str(folder / "a")!r}, "w").write("x"); open({str(tmp_path / "b")!r}, "w")'
    for kind, words in (('full', 'No space left'), ('denied', 'Permission denied')):
        done = subprocess.run(
            [sys.executable, '-c', program],
            capture_output=True,
            text=True,
            env=torture.environment(**torture.faults(library, folder, kind, 1)),
        )
        assert words in done.stderr and done.returncode == 1
    killed = torture.environment(**torture.faults(library, folder, 'kill', 1))
    assert subprocess.run([sys.executable, '-c', program], env=killed).returncode == -9


def test_growth_is_what_is_never_given_back():
    def held(*threads):
        return [flatness.Held(n, 100.0, 20, count) for n, count in enumerate(threads)]

    assert flatness.growth(held(9, 5, 6, 5, 5, 7, 5, 6)).threads == 0
    assert flatness.growth(held(1, 2, 3, 4, 5, 6, 7, 8)).threads == 4

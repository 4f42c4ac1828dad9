"""Some hundred damaged inputs of each kind; tools/maintenance/fuzz.py runs thousands."""

import time

import pytest

from tools.maintenance import fuzz


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
@pytest.mark.parametrize(
    ('kind', 'count'), [('coco', 40), ('image', 100), ('settings', 150), ('tf', 150)]
)
def test_damaged_input_is_used_or_refused_in_one_line(kind, count, tmp_path):
    results = []
    for seed in range(10_000, 10_000 + count):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcome = fuzz.run_case(kind, seed, folder)
        assert outcome.result != fuzz.FAILED, f'{outcome.command}\n{outcome.detail}'
        results.append(outcome.result)
    assert {fuzz.USED, fuzz.REFUSED} == set(results), 'the damage is too small or too great'


def test_a_case_is_a_function_of_its_seed(tmp_path):
    for name in 'ab':
        (tmp_path / name).mkdir()
    first, again = (fuzz.run_case('settings', 7, tmp_path / name) for name in 'ab')
    assert first == again


@pytest.mark.parametrize('fault', ['traceback', 'hang', 'two lines', 'broken promise'])
def test_failures_are_noticed(fault, tmp_path, monkeypatch):
    def case(rng, folder):
        if fault == 'traceback':
            return {}['key']
        if fault == 'two lines':
            raise fuzz.UserError('one\ntwo')
        if fault == 'broken promise':
            fuzz.promise(False, 'a box is not finite')
        time.sleep(60)
        return ''

    monkeypatch.setitem(fuzz.KINDS, 'coco', case)
    if fault == 'hang':
        monkeypatch.setattr(fuzz, 'WAITING', 0.2)
    outcome = fuzz.run_case('coco', 3, tmp_path)
    words = {
        'traceback': 'KeyError',
        'hang': 'TimeoutError',
        'two lines': 'not one line',
        'broken promise': 'a box is not finite',
    }
    assert outcome.result == fuzz.FAILED and words[fault] in outcome.detail
    assert outcome.command == 'python tools/maintenance/fuzz.py --kind=coco --count=1 --seed=3'

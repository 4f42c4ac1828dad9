"""The table of a search's own settings: default, legal values and meaning, with their sources.

Beside them, a config of a search has the settings of its candidates, of `spinenet_jax.settings`.
Sources: NASNet is Zoph et al. (2018), appendix A.2 and A.3; ENAS is Pham et al. (2018) with its
published code; MnasNet is Tan et al. (2019); AmoebaNet is Real et al. (2018).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from spinenet_jax import settings
from spinenet_jax.errors import UserError
from spinenet_jax.legal_values import Legal, choice, number, text, whole
from spinenet_jax.search.space import SPACES
from spinenet_jax.settings import Field

CONTROLLERS = ('ppo', 'reinforce', 'evolution', 'random')
_VARIABLES = Legal(
    'a dictionary of text by name',
    lambda v: (
        isinstance(v, ConfigDict | Mapping)
        and all(isinstance(name, str) and isinstance(v[name], str) for name in v)
    ),
)

TABLE: dict[str, Field] = {
    'space': Field('spinenet49', choice(*SPACES), 'what may change'),
    'controller': Field('ppo', choice(*CONTROLLERS), 'what proposes candidates'),
    'seed': Field(0, whole(0, 2**31 - 1), 'of the controller; candidates have their own'),
    'candidates': Field(60, whole(1), 'different graphs to evaluate'),
    'samples': Field(0, whole(0), 'most proposals, known graphs included; 0: 20 a candidate'),
    'workers': Field(2, whole(1, 100_000), 'candidates at a time'),
    'time_limit_minutes': Field(0.0, number(0, 1e6), 'of a candidate, then it is killed; 0: none'),
    'reference': Field('spinenet49', text(empty=False), 'graph whose cost is 1'),
    'max_multiply_adds': Field(0.0, number(0, 1e6), 'of a candidate, times reference; 0: any'),
    'max_parameters': Field(0.0, number(0, 1e6), 'of a candidate, times reference; 0: any'),
    'cost_exponent': Field(
        0.0, number(-10, 10), 'reward times multiply-adds to this power; MnasNet has -0.07'
    ),
    'device_variable': Field(
        '', text(), "engine local: variable that numbers a process's device, CUDA_VISIBLE_DEVICES"
    ),
    'environment': Field(ConfigDict(), _VARIABLES, "variables of a candidate's process"),
    'cpus': Field(1.0, number(0, 10_000), 'engine ray: cores of a candidate'),
    'gpus': Field(0.0, number(0, 10_000), 'engine ray: GPUs of a candidate'),
    'tpus': Field(0.0, number(0, 10_000), 'engine ray: TPU chips of a candidate, on one host'),
    'hidden': Field(100, whole(1, 10_000), 'units of the controller; NASNet has 100'),
    'learning_rate': Field(
        1e-3, number(0, 10, above=True), "Adam's; NASNet 3.5e-4, ENAS 1e-3 and 3.5e-3"
    ),
    'batch': Field(20, whole(1), 'rewards an update; NASNet has 20, ENAS 10 and 20'),
    'ppo_epochs': Field(4, whole(1, 1000), 'gradient steps an update; PPO only'),
    'clip': Field(0.2, number(0, 1, above=True), "of a decision's probability ratio; PPO only"),
    'baseline_decay': Field(0.95, number(0, 1), 'of the mean reward an update; NASNet has 0.95'),
    'entropy': Field(1e-3, number(0, 100), 'its weight; NASNet 1e-5, ENAS 1e-4 a decision'),
    'init_scale': Field(0.1, number(0, 10), 'weights start in +-this; NASNet and ENAS 0.1'),
    'population': Field(100, whole(1), 'evolution: results kept; AmoebaNet has 100'),
    'tournament': Field(25, whole(1), 'evolution: of which the best is mutated; AmoebaNet 25'),
}


def default_search() -> ConfigDict:
    """A `search` section with every field at its default."""
    return ConfigDict(
        {
            name: ConfigDict() if isinstance(field.default, ConfigDict) else field.default
            for name, field in TABLE.items()
        }
    )


def check(config: ConfigDict) -> None:
    """Hold a search's config to the table; the candidates' part to theirs.

    Raises:
      UserError: one line that names the field, its value and what may stand there.
    """
    if 'search' not in config or 'candidate' not in config:
        raise UserError("the config has no 'search' and 'candidate': see configs/search.py")
    for line in _problems(config.search):
        raise UserError(line)
    try:
        settings.check(config.candidate)
    except UserError as error:
        raise UserError(f'candidate: {error}') from None
    backbone = config.candidate.model.backbone
    if backbone != 'spinenet':
        raise UserError(f'candidate.model.backbone={backbone}: it has no graph to search')


def _problems(search: Any) -> Iterator[str]:
    for name in search:
        if name not in TABLE:
            yield f'search.{name} is no setting'
    for name, field in TABLE.items():
        if name not in search:
            yield f'search.{name} is missing in the config (copy configs/search.py)'
        elif not field.legal.allows(search[name]):
            must = f'must be {field.legal.words} ({field.meaning})'
            yield f'search.{name}={" ".join(repr(search[name]).split())}: {must}'
    if search.tournament > search.population:
        yield f'search.tournament={search.tournament}: larger than population={search.population}'

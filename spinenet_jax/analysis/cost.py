"""What a configuration costs: parameters, multiply-adds and activations, part by part.

Everything is read off the traced computation of one image at inference; nothing is computed by hand
and nothing runs. `python -m spinenet_jax.analysis.cost --config=configs/retinanet.py:49-B`
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax.tasks.build import build_task_model, model_in_training


class Cost(NamedTuple):
    """Cost of one part.

    Attributes:
      parameters: trainable values.
      multiply_adds: of convolutions and matrix products, for one image.
      activations: values put out by convolutions and matrix products, for one image.
    """

    parameters: int = 0
    multiply_adds: int = 0
    activations: int = 0

    def __add__(self, other: 'Cost') -> 'Cost':
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


def _contraction(equation: jax.extend.core.JaxprEqn) -> int:
    """Multiply-adds an output value of a convolution or matrix product; 0 for anything else."""
    if equation.primitive.name == 'conv_general_dilated':
        kernel = equation.invars[1].aval.shape
        out_axis = equation.params['dimension_numbers'].rhs_spec[0]
        return math.prod(kernel) // kernel[out_axis]
    if equation.primitive.name == 'dot_general':
        (axes, _), _ = equation.params['dimension_numbers']
        return math.prod(equation.invars[0].aval.shape[axis] for axis in axes)
    return 0


def _equations(
    jaxpr: jax.extend.core.Jaxpr, scope: str = ''
) -> Iterator[tuple[str, jax.extend.core.JaxprEqn]]:
    """Every equation, those of inner computations included, with its scope of module names."""
    for equation in jaxpr.eqns:
        inner_scope = f'{scope}/{equation.source_info.name_stack}'
        yield inner_scope, equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, 'eqns'):
                    yield from _equations(inner, inner_scope)
                elif hasattr(inner, 'jaxpr'):
                    yield from _equations(inner.jaxpr, inner_scope)


def model_cost(model: nn.Module, image_size: tuple[int, int]) -> dict[str, Cost]:
    """Cost of a Flax model by its top-level parts, for one image of (height, width).

    Args:
      model: called as `model(images, train=False)`, float32 or bfloat16. Counted as it is
        formulated; with the policy `PLAIN`, its convolutions are plain ones.
      image_size: pixels.

    Returns:
      {part: Cost}; the parts are the first level of the parameter tree, in order of cost.
    """
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    # Initialisation runs the network too, so that one trace gives parameters and computation.
    # Random draws have neither convolutions nor products, and are not counted.
    jaxpr, (_, variables) = jax.make_jaxpr(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), return_shape=True
    )(images)
    costs: dict[str, Cost] = defaultdict(Cost)
    for part, leaves in variables['params'].items():
        costs[part] += Cost(parameters=sum(x.size for x in jax.tree.leaves(leaves)))
    for scope, equation in _equations(jaxpr.jaxpr):
        per_value = _contraction(equation)
        if per_value:
            part = next((name for name in scope.split('/') if name in costs), 'other')
            size = equation.outvars[0].aval.size
            costs[part] += Cost(multiply_adds=per_value * size, activations=size)
    return dict(sorted(costs.items(), key=lambda item: -item[1].multiply_adds))


def config_cost(config: ConfigDict, *, train: bool = False) -> dict[str, Cost]:
    """`model_cost` of a config's model at its input size, plainly formulated, on any machine.

    Args:
      config: `task`, `model`, `data.image_size`, and `train.regions` of a two-stage detector.
      train: count the regions that a two-stage detector's heads look at in training, which are
        fewer than in inference. Still one forward pass.
    """
    model = build_task_model(config, axis_name=None)
    if train:
        model = model_in_training(config, model)
    return model_cost(model, tuple(config.data.image_size))


def table(costs: dict[str, Cost]) -> str:
    """The costs as text: a line a part and their sum, in millions and billions."""
    rows = {**costs, 'total': sum(costs.values(), Cost())}
    lines = [f'{"part":<12}{"parameters":>14}{"multiply-adds B":>18}{"activations M":>16}']
    for part, cost in rows.items():
        lines.append(
            f'{part:<12}{cost.parameters:>14,}{cost.multiply_adds / 1e9:>18.2f}'
            f'{cost.activations / 1e6:>16.1f}'
        )
    return '\n'.join(lines)


def main() -> None:
    """Print the table of the configuration on the command line."""
    from absl import app, flags
    from ml_collections import config_flags

    config_flag = config_flags.DEFINE_config_file(
        'config', None, 'Configuration.', lock_config=True
    )
    flags.mark_flag_as_required('config')

    def run(_: list[str]) -> None:
        config = config_flag.value
        size = tuple(config.data.image_size)
        print(f'one image of {size[0]} x {size[1]} pixels, at inference')
        print(table(config_cost(config)))

    app.run(run)


if __name__ == '__main__':
    main()

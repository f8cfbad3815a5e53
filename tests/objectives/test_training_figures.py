"""Every figure that training records, or an objective measures, is declared once, by what makes it."""

import jax

from alm_jax.bench.step import abstract_batch
from alm_jax.objectives import build_objective
from alm_jax.training import loop, step


def test_an_objective_declares_what_training_records_of_it(tiny_name, load_tiny):
    config = load_tiny(tiny_name)
    objective = build_objective(config.objective)
    key = jax.random.key(0)
    variables = jax.eval_shape(objective.init, key)

    def loss(variables, batch, key):
        return objective.loss(variables, batch, key, train=True)

    _, metrics = jax.eval_shape(loss, variables, abstract_batch(config), key)
    names = [figure.name for figure in objective.figures]
    assert len(set(names)) == len(names)
    measured = (
        {}
        if objective.measure is None
        else jax.eval_shape(objective.measure, variables, abstract_batch(config))
    )
    assert set(names) == {"loss", *metrics, *measured}
    others = {figure.name for figure in (*step.FIGURES, *loop.FIGURES)}
    assert not others & set(names)

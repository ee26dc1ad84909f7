"""What tests read in a program that is traced and not compiled."""

import jax


def equations(jaxpr):
  """Yields the equations of a program, those of inner ones too."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in jax.tree.leaves(
      eqn.params, is_leaf=lambda v: hasattr(v, 'eqns') or hasattr(v, 'jaxpr')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)

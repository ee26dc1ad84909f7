"""A run whose numbers are no longer finite ends at once."""

import math
from collections.abc import Mapping

from softmoe.errors import Diverged

# Together they vouch for the state: a gradient that is not finite spoils the
# optimizer, an update that is not finite spoils the parameters.
_WATCHED = ('loss', 'gradient_norm', 'parameter_norm')


def check(step: int, metrics: Mapping[str, float]) -> None:
  """Raises Diverged if the metrics of a training step say so."""
  for name in _WATCHED:
    if not math.isfinite(metrics[name]):
      raise Diverged(
        f'{name} at step {step} is {metrics[name]}; a lower learning rate, a '
        'longer warm-up or gradient clipping may help'
      )

"""A run at several thresholds, as an evaluator of suites."""

import math
import pathlib
from collections.abc import Sequence

from softmoe.runs import workdir as workdir_lib
from softmoe.tables.thresholds import measure


def evaluate(
  workdir: pathlib.Path, *, thresholds: Sequence[float], split: str
) -> dict[str, float]:
  """Returns `t0.5/NAME` for each threshold and each metric of the split.

  Args:
    workdir: of a finished run; one whose router knows no threshold has none of
      these metrics.
    thresholds: above 0, at most 1; infinity is every expert, named `tall`.
    split: to evaluate on.
  """
  if not measure.has_threshold(workdir_lib.read_config(workdir)):
    return {}
  run = measure.Run(str(workdir), thresholds, 'latest', split)
  return {
    f't{"all" if math.isinf(t) else format(t, "g")}/{name}': value
    for t in thresholds
    for name, value in run.evaluate(t).items()
  }

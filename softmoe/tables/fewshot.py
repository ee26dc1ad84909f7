"""Few-shot accuracy, as an evaluator of suites."""

import pathlib
from typing import Any

from softmoe.evaluation import fewshot
from softmoe.tasks import shots


def evaluate(workdir: pathlib.Path, **options: Any) -> dict[str, float]:
  """Returns `fewshot/10shot`, the mean over draws, for each number of shots.

  Args:
    workdir: of a finished run.
    **options: fields of `shots.FewshotConfig`; without a source, the run's own.

  Raises:
    UserError: as `fewshot.evaluate_workdir`.
  """
  config = shots.FewshotConfig(**options)
  found = fewshot.evaluate_workdir(workdir, config)
  return {
    f'fewshot/{n}shot': found[f'{n}shot']['accuracy'] for n in config.shots
  }

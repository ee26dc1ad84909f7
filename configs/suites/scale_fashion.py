"""Where Soft MoE's learnt scale starts, on Fashion-MNIST: see `scale`.

Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951, section 2.3.
"""

import dataclasses
import pathlib

from softmoe.tables import suite

STARTS = (1, 2, 4, 8, 16)
# Its three runs of Soft MoE are those of the paper's start.
MAIN = suite.load(pathlib.Path(__file__).with_name('main_fashion.py'))


def get_suite() -> suite.Suite:
  """Returns 15 runs; a start is a model of its own, so that pairs compare."""
  soft = [run for run in MAIN.runs if run.model == 'Soft MoE']
  return suite.Suite(
    title="The start of Soft MoE's scale, on Fashion-MNIST, width 32",
    baseline=_name(1),
    metric=MAIN.metric,
    splits=MAIN.splits,
    runs=tuple(_start(run, start) for run in soft for start in STARTS),
  )


def _name(start: int) -> str:
  return f'Soft MoE, scale {start}'


def _start(run: suite.Run, start: int) -> suite.Run:
  changes = {'model.moe.scale_init': float(start)}
  return dataclasses.replace(
    run,
    model=_name(start),
    sweep={'scale': start},
    overrides={**run.overrides, **changes},
  )

"""Where Soft MoE's learnt scale starts, against the length of the training.

The paper starts it at 1: all logits are then cosines, and mixing is almost
uniform. Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951, section 2.3.
"""

from softmoe.tables import suite

STARTS = (1, 2, 4, 8, 16)
LONG = (1, 4, 8)


def get_suite() -> suite.Suite:
  """Returns 24 runs; a start is a model of its own, so that pairs compare."""
  return suite.Suite(
    title="The start of Soft MoE's scale, on glyphs, width 32",
    baseline=_name(1),
    metric='test/accuracy',
    splits=('val', 'test', 'faces'),
    runs=tuple(
      run
      for starts, steps in ((STARTS, 4000), (LONG, 16_000))
      for seed in range(3)
      for start in starts
      for run in _runs(start, steps, seed)
    ),
  )


def _name(start: int) -> str:
  return f'Soft MoE, scale {start}'


def _runs(start: int, steps: int, seed: int) -> tuple[suite.Run, ...]:
  changes = {'model.moe.scale_init': float(start), 'steps': steps}
  return suite.product(
    {_name(start): 'glyphs:soft'},
    [seed],
    [({'scale': start, 'steps': steps}, changes)],
    suite.ONE_CHECKPOINT,
  )

"""Where Soft MoE's learnt scale starts, against the length of the training.

The paper starts it at 1: all logits are then cosines, and mixing is almost
uniform. Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951, section 2.3.
"""

from softmoe.tables import suite

SHORT = {start: 4000 for start in (1.0, 2.0, 4.0, 8.0, 16.0)}
LONG = {start: 16_000 for start in (1.0, 4.0, 8.0)}


def _points(starts: dict[float, int]) -> list[suite.Point]:
  return [
    (
      {'scale': start, 'steps': steps},
      {'model.moe.scale_init': start, 'steps': steps},
    )
    for start, steps in starts.items()
  ]


def get_suite() -> suite.Suite:
  """Returns 24 runs."""
  return suite.Suite(
    title="The start of Soft MoE's scale, on glyphs, width 32",
    metric='test/accuracy',
    splits=('val', 'test', 'faces'),
    runs=suite.product(
      {'Soft MoE': 'glyphs:soft'},
      range(3),
      [*_points(SHORT), *_points(LONG)],
      suite.ONE_CHECKPOINT,
    ),
  )

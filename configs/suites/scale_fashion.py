"""Where Soft MoE's learnt scale starts, on Fashion-MNIST: see `scale`.

As `main_fashion` trains it, whose three runs are those of the paper's start.
Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951, section 2.3.
"""

from softmoe.tables import suite

STARTS = (1, 2, 4, 8, 16)
NARROW = {
  'steps': 7000,
  'model.width': 32,
  'model.mlp_dim': 128,
  'data.train_split': 'train[:90%]',
  'data.eval_split': 'train[90%:]',
}


def get_suite() -> suite.Suite:
  """Returns 15 runs; a start is a model of its own, so that pairs compare."""
  return suite.Suite(
    title="The start of Soft MoE's scale, on Fashion-MNIST, width 32",
    baseline=_name(1),
    metric='test/accuracy',
    splits=('train[90%:]', 'test'),
    runs=tuple(
      run for seed in range(3) for start in STARTS for run in _runs(start, seed)
    ),
  )


def _name(start: int) -> str:
  return f'Soft MoE, scale {start}'


def _runs(start: int, seed: int) -> tuple[suite.Run, ...]:
  changes = {'model.moe.scale_init': float(start)}
  return suite.product(
    {_name(start): 'fashion_mnist:soft'},
    [seed],
    [({'scale': start}, changes)],
    suite.ONE_CHECKPOINT | NARROW,
  )

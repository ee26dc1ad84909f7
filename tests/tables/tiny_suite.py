"""Four runs that train in seconds, on digits."""

from softmoe.tables import suite

SPLITS = ('test[:50]', 'test[50:100]')


def get_suite() -> suite.Suite:
  return suite.Suite(
    title='Tiny',
    baseline='ViT',
    metric='test[:50]/accuracy',
    splits=SPLITS,
    evaluators={'tests.tables.tiny_suite:count': {'suffix': '.txt'}},
    runs=suite.product(
      {'ViT': 'tests/tiny.py:vit', 'Soft MoE': 'tests/tiny.py:soft'},
      seeds=(0, 1),
      points=[({'width': 8}, {'model.width': 8, 'model.num_heads': 1})],
      overrides={
        'steps': 200,
        'log_every': 5,
        'eval_every': 50,
        'checkpoint.every': 20,
        'checkpoint.keep_last': 1,
        'checkpoint.keep_best': 0,
      },
    ),
  )


def count(workdir, suffix):
  """An evaluator: the number of files that end so."""
  return {'files': len(list(workdir.glob(f'*{suffix}')))}

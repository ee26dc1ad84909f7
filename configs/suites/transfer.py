"""Fine-tuning of what the suite `main` left, to Fashion-MNIST.

It needs the workdirs of that suite, under `runs/main`.
"""

from softmoe.tables import suite

MODELS = {
  'ViT': 'vit',
  'Tokens Choice, K=1': 'tokens',
  'Soft MoE': 'soft',
}
FASHION = suite.ONE_CHECKPOINT | {
  'steps': 1000,
  'data.source': 'idx:/usr/share/datasets/fashion-mnist',
  'data.num_classes': 10,
  'data.train.resize': 32,
  'data.eval.resize': 32,
  'data.train_split': 'train[:90%]',
  'data.eval_split': 'train[90%:]',
}


def get_suite() -> suite.Suite:
  """Returns a run from scratch and one that is fine-tuned, of five seeds."""
  return suite.Suite(
    title='Fine-tuning from glyphs to Fashion-MNIST, width 32',
    baseline='ViT',
    metric='test/accuracy',
    splits=('train[90%:]', 'test'),
    runs=tuple(
      run
      for seed in range(5)
      for model, argument in MODELS.items()
      for run in _runs(model, argument, seed)
    ),
  )


def _runs(model: str, argument: str, seed: int) -> list[suite.Run]:
  origin = f'runs/main/{argument}-width32-seed{seed}'
  starts = {'scratch': {}, 'glyphs': {'init': origin, 'init_head': 'reset'}}
  return [
    suite.Run(model, f'glyphs:{argument}', seed, {'from': name}, FASHION | init)
    for name, init in starts.items()
  ]

"""Fine-tuning of what the suite `main` left, to families of faces it never saw.

Half of the split `faces` is trained on, a tenth is looked at, the rest is the
test. Before fine-tuning, `main` has the accuracy on all of it. It needs the
workdirs of that suite, under `runs/main`.
"""

from softmoe.tables import suite

MODELS = {
  'ViT': 'vit',
  'Tokens Choice, K=1': 'tokens',
  'Soft MoE': 'soft',
}
VAL, TEST = 'faces[50%:60%]', 'faces[60%:]'
FACES = suite.ONE_CHECKPOINT | {
  'steps': 1000,
  'data.train_split': 'faces[:50%]',
  'data.eval_split': VAL,
}


def get_suite() -> suite.Suite:
  """Returns a run from scratch and one that is fine-tuned, of five seeds."""
  return suite.Suite(
    title='Fine-tuning to unseen faces of type, width 32',
    baseline='ViT',
    metric=f'{TEST}/accuracy',
    splits=(VAL, TEST),
    runs=tuple(
      run
      for seed in range(5)
      for model, argument in MODELS.items()
      for run in _runs(model, argument, seed)
    ),
  )


def _runs(model: str, argument: str, seed: int) -> list[suite.Run]:
  origin = f'runs/main/{argument}-width32-seed{seed}'
  starts = {'scratch': {}, 'glyphs': {'init': origin}}
  return [
    suite.Run(model, f'glyphs:{argument}', seed, {'from': name}, FACES | init)
    for name, init in starts.items()
  ]

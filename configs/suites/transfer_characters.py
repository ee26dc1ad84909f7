"""Fine-tuning of what the suite `main` left, to characters it never saw.

They are the 500 characters of the few-shot splits, in faces that `main` was
trained on. It needs the workdirs of that suite, under `runs/main`.
"""

from softmoe.tables import suite

MODELS = {
  'ViT': 'vit',
  'Tokens Choice, K=1': 'tokens',
  'Soft MoE': 'soft',
}
VAL, TEST = 'fewshot_train[90%:]', 'fewshot_test'
CHARACTERS = suite.ONE_CHECKPOINT | {
  'steps': 1000,
  'data.num_classes': 500,
  'data.train_split': 'fewshot_train[:90%]',
  'data.eval_split': VAL,
}


def get_suite() -> suite.Suite:
  """Returns a run from scratch and one that is fine-tuned, of five seeds."""
  return suite.Suite(
    title='Fine-tuning to 500 unseen characters, width 32',
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
  starts = {'scratch': {}, 'glyphs': {'init': origin, 'init_head': 'reset'}}
  return [
    suite.Run(
      model, f'glyphs:{argument}', seed, {'from': name}, CHARACTERS | init
    )
    for name, init in starts.items()
  ]

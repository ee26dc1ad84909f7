"""Fine-tuning of what the suite `main` left, to characters it never saw.

They are the 500 characters of the few-shot splits, in faces that `main` was
trained on. It needs the workdirs of that suite, under `runs/main`.
"""

from softmoe.tables import suite

MODELS = {
  'ViT': 'glyphs:vit',
  'Tokens Choice, K=1': 'glyphs:tokens',
  'Soft MoE': 'glyphs:soft',
}
VAL, TEST = 'fewshot_train[90%:]', 'fewshot_test'
CHARACTERS = suite.ONE_CHECKPOINT | {
  'steps': 1000,
  'data.num_classes': 500,
  'data.train_split': 'fewshot_train[:90%]',
  'data.eval_split': VAL,
}
MAIN = 'runs/main/{argument}-width32-seed{seed}'
HEAD = {'init_head': 'reset'}
SLOW = {'optimizer.learning_rate': 1.6e-3}
STARTS = (
  ({'from': 'scratch'}, {}),
  ({'from': 'glyphs'}, suite.start(MAIN, HEAD)),
  ({'from': 'glyphs, a tenth of the rate'}, suite.start(MAIN, HEAD | SLOW)),
)


def get_suite() -> suite.Suite:
  """Returns runs from scratch, and fine-tuned at two rates, of three seeds."""
  return suite.Suite(
    title='Fine-tuning to 500 unseen characters, width 32',
    baseline='ViT',
    metric=f'{TEST}/accuracy',
    splits=(VAL, TEST),
    runs=suite.product(MODELS, range(3), STARTS, CHARACTERS),
  )

"""Fine-tuning of what the suite `main` left, to families of faces it never saw.

Half of the split `faces` is trained on, a tenth is looked at, the rest is the
test. Before fine-tuning, `main` has the accuracy on all of it. It needs the
workdirs of that suite, under `runs/main`.
"""

from softmoe.tables import suite

MODELS = {
  'ViT': 'glyphs:vit',
  'Tokens Choice, K=1': 'glyphs:tokens',
  'Soft MoE': 'glyphs:soft',
}
VAL, TEST = 'faces[50%:60%]', 'faces[60%:]'
FACES = suite.ONE_CHECKPOINT | {
  'steps': 1000,
  'data.train_split': 'faces[:50%]',
  'data.eval_split': VAL,
}
MAIN = 'runs/main/{argument}-width32-seed{seed}'
SLOW = {'optimizer.learning_rate': 1.6e-3}
STARTS = (
  ({'from': 'scratch'}, {}),
  ({'from': 'glyphs'}, suite.start(MAIN)),
  ({'from': 'glyphs, a tenth of the rate'}, suite.start(MAIN, SLOW)),
)


def get_suite() -> suite.Suite:
  """Returns runs from scratch, and fine-tuned at two rates, of three seeds."""
  return suite.Suite(
    title='Fine-tuning to unseen faces of type, width 32',
    baseline='ViT',
    metric=f'{TEST}/accuracy',
    splits=(VAL, TEST),
    runs=suite.product(MODELS, range(3), STARTS, FACES),
  )

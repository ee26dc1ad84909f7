"""Fine-tuning of what the suite `main` left, to Fashion-MNIST.

It needs the workdirs of that suite, under `runs/main`.
"""

from softmoe.tables import suite

MODELS = {
  'ViT': 'glyphs:vit',
  'Tokens Choice, K=1': 'glyphs:tokens',
  'Soft MoE': 'glyphs:soft',
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
    title='Fine-tuning from glyphs to Fashion-MNIST, width 32',
    baseline='ViT',
    metric='test/accuracy',
    splits=('train[90%:]', 'test'),
    runs=suite.product(MODELS, range(3), STARTS, FASHION),
  )

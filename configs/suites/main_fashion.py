"""ViT and its mixtures at equal cost on Fashion-MNIST, narrow, three seeds."""

from softmoe.tables import suite

MODELS = {
  'ViT': 'fashion_mnist:vit',
  'Tokens Choice, K=1': 'fashion_mnist:tokens',
  'Tokens Choice, K=2': 'fashion_mnist:tokens_k2',
  'Experts Choice': 'fashion_mnist:experts',
  'Soft MoE': 'fashion_mnist:soft',
}
NARROW = {
  'steps': 7000,
  'model.width': 32,
  'model.mlp_dim': 128,
  # Tuning takes none of the test images: the last tenth of the training is
  # looked at while it goes on.
  'data.train_split': 'train[:90%]',
  'data.eval_split': 'train[90%:]',
}


def get_suite() -> suite.Suite:
  """Returns 15 runs."""
  return suite.Suite(
    title='Fashion-MNIST, width 32',
    baseline='ViT',
    metric='test/accuracy',
    splits=('train[90%:]', 'test'),
    runs=suite.product(
      MODELS, range(3), overrides=suite.ONE_CHECKPOINT | NARROW
    ),
  )

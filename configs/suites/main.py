"""ViT and its mixtures at equal cost on glyphs, over widths, five seeds."""

from softmoe.tables import suite

MODELS = {
  'ViT': 'glyphs:vit',
  'Tokens Choice, K=1': 'glyphs:tokens',
  'Tokens Choice, K=2': 'glyphs:tokens_k2',
  'Experts Choice': 'glyphs:experts',
  'Soft MoE': 'glyphs:soft',
}
# The narrow ones of all seeds come first: a wide model reads most characters.
WIDTHS = ((16, 32), (64,))
# On characters that are in no other split.
FEWSHOT = {
  'softmoe.tables.fewshot:evaluate': {
    'train_split': 'fewshot_train',
    'test_split': 'fewshot_test',
    'shots': (10,),
  }
}


def get_suite() -> suite.Suite:
  """Returns 75 runs."""
  return suite.Suite(
    title='Glyphs: 2,965 characters in faces of type',
    baseline='ViT',
    metric='test/accuracy',
    splits=('val', 'test', 'faces'),
    evaluators=FEWSHOT,
    runs=tuple(run for widths in WIDTHS for run in _runs(widths)),
  )


def _runs(widths: tuple[int, ...]) -> tuple[suite.Run, ...]:
  sweep = [({'width': width}, {'model.width': width}) for width in widths]
  return suite.product(MODELS, range(5), sweep, suite.ONE_CHECKPOINT)

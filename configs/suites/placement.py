"""Which blocks are mixtures: after Tables 4 to 6 of the paper, on glyphs.

Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951.
"""

from softmoe.tables import suite

VIT = {'ViT': 'glyphs:vit'}
MODELS = {
  'Soft MoE': 'glyphs:soft',
  'Tokens Choice': 'glyphs:tokens',
  'Experts Choice': 'glyphs:experts',
}
BLOCKS = {
  'last': (5,),
  'last 2': (4, 5),
  'last 3': (3, 4, 5),
  'first 3': (0, 1, 2),
  'every other': (1, 3, 5),
  'all': (0, 1, 2, 3, 4, 5),
}


def get_suite() -> suite.Suite:
  """Returns 19 runs, one seed."""
  places = [
    ({'blocks': name}, {'model.moe.blocks': blocks})
    for name, blocks in BLOCKS.items()
  ]
  return suite.Suite(
    title='Which of six blocks are mixtures, on glyphs, width 32',
    baseline='ViT',
    metric='test/accuracy',
    splits=('val', 'test', 'faces'),
    runs=(
      *suite.product(VIT, [0], overrides=suite.ONE_CHECKPOINT),
      *suite.product(MODELS, [0], places, suite.ONE_CHECKPOINT),
    ),
  )

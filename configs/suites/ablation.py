"""What of Soft MoE's routing matters: Table 2 of the paper, on glyphs.

Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951, section 4.
"""

from softmoe.tables import suite

MODELS = {
  'ViT': 'glyphs:vit',
  'Identity': 'glyphs:identity',
  'Uniform': 'glyphs:uniform',
  'Soft / uniform': 'glyphs:soft_uniform',
  'Uniform / soft': 'glyphs:uniform_soft',
  'Soft MoE': 'glyphs:soft',
}


def get_suite() -> suite.Suite:
  """Returns 18 runs."""
  return suite.Suite(
    title='Dispatch and combine, learnt or not, on glyphs, width 32',
    baseline='ViT',
    metric='test/accuracy',
    splits=('val', 'test', 'faces'),
    runs=suite.product(MODELS, range(3), overrides=suite.ONE_CHECKPOINT),
  )

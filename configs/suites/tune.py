"""Learning rate and weight decay of each model, once, at width 32, on `val`.

What comes out best belongs into `configs/glyphs.py`. 32 runs. A rate of 1e-3 is
far too low for 4,000 steps: it left the ViT at 22 %.
"""

from softmoe.tables import suite

MODELS = {
  'ViT': 'glyphs:vit',
  'Soft MoE': 'glyphs:soft',
  'Tokens Choice': 'glyphs:tokens',
  'Experts Choice': 'glyphs:experts',
}


def get_suite() -> suite.Suite:
  """Returns eight settings of each model, one seed."""
  settings = [
    (
      {'rate': rate, 'decay': decay},
      {
        'optimizer.learning_rate': rate,
        'optimizer.weight_decay': (('.*/kernel', decay),),
      },
    )
    for rate in (2e-3, 4e-3, 8e-3, 16e-3)
    for decay in (0.05, 0.2)
  ]
  return suite.Suite(
    title='Learning rate and weight decay on glyphs, width 32',
    metric='val/accuracy',
    splits=('val',),
    runs=suite.product(MODELS, [0], settings, suite.ONE_CHECKPOINT),
  )

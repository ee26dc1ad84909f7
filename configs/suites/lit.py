"""Texts for the towers that the suite `main` left: locked images, on glyphs.

Soft MoE's Table 3 (https://arxiv.org/abs/2308.00951): which representation do
texts find more in? The towers of images stay as they are. `faces` has the 2,965
characters in faces of type that neither tower saw, `fewshot_test` characters
that neither saw. It needs the workdirs of that suite, under `runs/main`.
"""

from softmoe.tables import suite

MODELS = {'ViT': 'lit:vit', 'Soft MoE': 'lit:soft'}
START = suite.start('runs/main/{argument}-width32-seed{seed}')


def get_suite() -> suite.Suite:
  """Returns 6 runs."""
  return suite.Suite(
    title='Texts for locked images of glyphs, width 32',
    baseline='ViT',
    metric='faces/zeroshot',
    splits=('val', 'faces', 'fewshot_test'),
    runs=suite.product(MODELS, range(3), [({}, START)], suite.ONE_CHECKPOINT),
  )

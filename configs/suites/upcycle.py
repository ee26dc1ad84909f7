"""Sparse upcycling of the ViT that the suite `main` left, on glyphs.

Komatsuzaki et al., 2023, https://arxiv.org/abs/2212.05055, and routers that the
paper has not. Each mixture starts from the dense run, and from nothing, and is
trained for 10 % and 50 % of the steps of that run; 0 % is one step at a rate of
0, so that it is evaluated as it starts. What starts from the dense run is
trained at a tenth of its rate, since at the whole rate it first loses what it
had (docs/finetuning.md). The ViT is trained on for as many FLOPs as the dearest
mixture has, and once more for as many as the others have at most. What starts
from nothing has the warm-up of the dense run, or half of its steps: at this
rate Soft MoE learns nothing for a thousand steps after one of 200. It needs the
workdirs of `main`, under `runs/main`.
"""

from softmoe.tables import suite

STEPS = 4000  # of the dense run
WARMUP = 400  # of it
RATE = 1.6e-3  # of what starts from it, a tenth of its own
PERCENTS = (0, 10, 50)
# Steps of the ViT for one of a mixture, by FLOPs and no less: of Tokens Choice,
# K=2, and of the others. And what tells these runs apart.
DENSE_STEPS = ((1.31, {}), (1.09, {'flops': 1.09}))
# Each with its changes, and `upcycle.scale`: 1 over what the gates of a token
# sum to, after drops, on normal tokens; Soft MoE's sum to 1, and those that are
# normalised.
MIXTURES = {
  'Soft MoE': ('soft', {}, 1.0),
  'Tokens Choice, K=2': ('tokens_k2', {'model.moe.normalize': True}, 1.0),
  'Experts Choice': ('experts', {}, 4.0),
  'XMoE': ('xmoe', {}, 6.0),
}


def get_suite() -> suite.Suite:
  """Returns 75 runs."""
  runs = []
  for seed in range(3):
    for percent in PERCENTS:
      runs += _dense(percent, seed)
    for model in MIXTURES:
      for percent in PERCENTS:
        runs += _mixture(model, percent, seed)
  return suite.Suite(
    title='Sparse upcycling on glyphs, width 32',
    baseline='ViT',
    metric='test/accuracy',
    splits=('val', 'test', 'faces'),
    runs=tuple(runs),
  )


def _dense(percent: int, seed: int) -> list[suite.Run]:
  """Returns the ViT trained on."""
  sweep = {'from': 'dense', 'percent': percent}
  return [
    _run('ViT', 'vit', seed, sweep | more, _start(factor * percent, seed))
    for factor, more in DENSE_STEPS
    if percent or not more
  ]


def _mixture(model: str, percent: int, seed: int) -> list[suite.Run]:
  """Returns a mixture out of the ViT, and the same from nothing."""
  argument, changes, scale = MIXTURES[model]
  upcycled = {'upcycle.enabled': True, 'upcycle.scale': scale}
  starts = {'dense': _start(percent, seed) | upcycled}
  if percent:
    steps = _steps(percent)
    warmup = min(WARMUP, steps // 2)
    starts['scratch'] = {'steps': steps, 'optimizer.schedule.warmup': warmup}
  return [
    _run(
      model,
      argument,
      seed,
      {'from': name, 'percent': percent},
      changes | start,
    )
    for name, start in starts.items()
  ]


def _run(
  model: str, argument: str, seed: int, sweep: dict, changes: dict
) -> suite.Run:
  changes = suite.ONE_CHECKPOINT | changes
  return suite.Run(model, f'glyphs:{argument}', seed, sweep, changes)


def _start(percent: float, seed: int) -> dict:
  """Returns how and how long what starts from the dense run is trained."""
  steps = _steps(percent)
  return {
    'init': f'runs/main/vit-width32-seed{seed}',
    'steps': max(steps, 1),
    'optimizer.learning_rate': RATE if steps else 0.0,
    'optimizer.schedule.warmup': steps // 10,
  }


def _steps(percent: float) -> int:
  return round(STEPS * percent / 100)

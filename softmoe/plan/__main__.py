"""Tells what a config needs and takes on devices that are not here.

python -m softmoe.plan --config=configs/jft4b.py:soft-h14 --target=v5p:8x8x4
"""

import json
import math
import sys

from absl import flags

from softmoe.process import config_flag, launch

_CONFIG = config_flag.define(
  'config',
  'The experiment: FILE[:ARGUMENT] or NAME[:ARGUMENT].',
)
_COMPARE = config_flag.define('compare', 'Another experiment, side by side.')
_TARGET = flags.DEFINE_string(
  'target', '', "The slice: 'v5p:8x8x4', 'h100:4x8' (hosts x GPUs), 'cpu:8'."
)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object.')
_SUGGEST = flags.DEFINE_bool(
  'suggest', True, 'Look for changes that fit, if the config does not.'
)
_CACHE = flags.DEFINE_string(
  'cache', '', 'Directory of earlier results; empty: ~/.cache/softmoe/plan.'
)
flags.register_validator(
  _CONFIG, lambda config: config and 'steps' in config, 'give --config=FILE'
)
flags.register_validator(_TARGET, bool, 'give --target=SLICE, such as cpu:8')


def main() -> None:
  """Prints the estimate of one config or two."""
  import jax

  from softmoe import experiment as experiment_lib
  from softmoe.plan import compiling, estimate, report, suggest, targets

  jax.config.update('jax_platforms', 'cpu')  # nothing runs on anything else
  kind, shape = targets.parse(_TARGET.value)
  if kind == 'cpu':
    jax.config.update('jax_num_cpu_devices', math.prod(shape))
  target = targets.open_target(_TARGET.value)
  configs = [
    experiment_lib.parse(c.value) for c in (_CONFIG, _COMPARE) if c.value
  ]
  cache = compiling.open_cache(_CACHE.value)
  reports = [estimate.estimate(c, target, cache=cache) for c in configs]
  for config, each in zip(configs, reports, strict=True):
    if _SUGGEST.value and not each['train']['memory']['fits']:
      print('looking for changes that fit', file=sys.stderr)
      each['suggestion'] = suggest.suggest(config, target, each, cache)
  if _JSON.value:
    print(json.dumps(reports[0] if len(reports) == 1 else reports))
    return
  print(report.table(reports))
  for each in reports:
    print(report.verdict(each))
    if 'suggestion' in each:
      print(report.advice(each['suggestion']))


if __name__ == '__main__':
  launch.run(main, alone=True)

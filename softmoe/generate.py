"""Lets a run write: a language model goes on, a translator translates.

python -m softmoe.generate --workdir=runs/lm --prompt='def '
python -m softmoe.generate --workdir=runs/de-en --input=de.txt --output=en.txt
"""

import pathlib
import sys

from absl import flags

from softmoe.errors import UserError, naming
from softmoe.process import launch

_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the run.')
_STEP = flags.DEFINE_string(
  'step', 'latest', "Which checkpoint: 'latest', 'best' or a step."
)
_MESH = flags.DEFINE_string(
  'mesh', '', 'The mesh, as in a config; it need not be that of the training.'
)
_PROMPT = flags.DEFINE_string('prompt', '', 'What to go on from.')
_INPUT = flags.DEFINE_string(
  'input', '', 'A file with a prompt, or a sentence, a line; not with --prompt.'
)
_OUTPUT = flags.DEFINE_string(
  'output', '', 'A new file, a line for each of --input; empty: print.'
)
_TOKENS = flags.DEFINE_integer('tokens', 200, 'The most to write of each.')
_TEMPERATURE = flags.DEFINE_float(
  'temperature',
  0.8,
  'Of a language model: divides the logits; 0: the most probable token.',
)
_TOP_K = flags.DEFINE_integer(
  'top_k',
  0,
  'Of a language model: draw from so many of the most probable tokens; 0: all.',
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of a language model: of the draws.')
_BEAM = flags.DEFINE_integer('beam', 5, 'Of a translator: width of the search.')
flags.register_validator(_WORKDIR, bool, 'give --workdir=DIRECTORY')


def main() -> None:
  """Writes, and prints it or puts it into a file."""
  prompts = _prompts()
  if _OUTPUT.value and pathlib.Path(_OUTPUT.value).exists():
    raise UserError('--output', _OUTPUT.value, 'a new file')
  from flax import nnx

  from softmoe.models import generation
  from softmoe.runs import load

  how = generation.Sampling(
    _TOKENS.value, _TEMPERATURE.value, _TOP_K.value, _SEED.value, _BEAM.value
  )
  with naming({name: f'--{name}' for name in how._fields}):
    generation.check(how)
  experiment, _, params = load.restore(_WORKDIR.value, _STEP.value, _MESH.value)
  model = nnx.merge(experiment.graphdef, params)
  prompt = '--input' if _INPUT.value else '--prompt'
  with naming({'prompt': prompt, 'length': '--tokens'}):
    written = experiment.task.write(model, prompts, how)
  if _OUTPUT.value:
    # A line is one prompt's, whatever it holds.
    lines = (' '.join(text.splitlines()) + '\n' for text in written)
    pathlib.Path(_OUTPUT.value).write_text(''.join(lines), encoding='utf-8')
  else:
    sys.stdout.writelines(f'{text}\n' for text in written)


def _prompts() -> list[str]:
  if not _INPUT.value:
    return [_PROMPT.value]
  if _PROMPT.value:
    raise UserError('--prompt', _PROMPT.value, 'nothing beside --input')
  try:
    lines = pathlib.Path(_INPUT.value).read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise UserError('--input', _INPUT.value, f'a UTF-8 text file ({e})') from e
  if not lines:
    raise UserError('--input', _INPUT.value, 'a file with lines')
  return lines


if __name__ == '__main__':
  launch.run(main)

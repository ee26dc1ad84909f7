"""What a task is: all that is special to what is learnt, in one file.

A task says what its config holds, makes the model and the batches, and turns a
batch into a loss. Everything else (mesh, optimizer, step, loop, checkpoints,
costs, `plan`, tables) works on any task. `config.task` names it: one of
`tasks.registry`, or 'my_module:MyTask' for one of your own.
"""

import abc
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from softmoe import config as config_lib
from softmoe.errors import UserError

Params = dict[str, Any]
Batch = dict[str, Any]  # arrays whose first axis is the examples
Rows = Integer[np.ndarray, ' n']
# From parameters and the name of a split to metrics.
Evaluator = Callable[[Params, str], dict[str, float]]


class Mean(NamedTuple):
  """A mean that is not divided yet.

  Attributes:
    total: the sum.
    weight: what it is divided by; 0 where it is a sum to be left as it is.
  """

  total: Float[Array, '']
  weight: Float[Array, '']

  def value(self) -> Float[Array, '']:
    """Returns the mean."""
    return self.total / nonzero(self.weight)


class Loss(NamedTuple):
  """What a model makes of a batch: sums, so that parts of a batch add up.

  Attributes:
    sum: of the loss over whatever it is a mean of: examples, tokens.
    weight: how many of these there are, padding aside.
    metrics: sums over the same; or a `Mean`, over something else.
    aux: what MoE layers return beside their output, with weights of their own.
  """

  sum: Float[Array, '']
  weight: Float[Array, '']
  metrics: Mapping[str, Array | Mean] = {}
  aux: dict[str, dict[str, Array]] = {}


class Task(abc.ABC):
  """One kind of experiment.

  Attributes:
    Config: dataclass of the experiment, which extends `config.Config`.
    unit: what speed and FLOPs are counted in: 'image', 'token', 'sentence'.
    units_per_example: how many of these an example of the batch holds.
    shown: metrics on the line that tells of the progress.
    head: the branch of the parameters that `init_head` may reset; '': none.
    part: (branch, task): the branch of the parameters that is the model of
      another task, but for its head, and the name of that task. A run of that
      task or a file of another library may be its start; '' and '': none.
    additive: whether the loss of a batch is the sum of that of its parts. Where
      it is not, as in a contrastive loss, there are no micro-batches.
  """

  Config: ClassVar[type[config_lib.Config]]
  unit: str = 'example'
  units_per_example: int = 1
  shown: tuple[str, ...] = ('loss', 'learning_rate')
  head: str = ''
  part: tuple[str, str] = ('', '')
  additive: bool = True

  def __init__(self, config: Any):
    """Takes the checked config, an instance of `Config`.

    Raises:
      UserError: a field that only the task knows is wrong.
    """
    self.config = config

  @abc.abstractmethod
  def make_model(self, rngs: nnx.Rngs) -> Any:
    """Returns the model, an `nnx.Module`, with fresh parameters."""

  @abc.abstractmethod
  def train_batches(
    self, rows: Rows, start_step: int = 0
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns these rows of every global batch from a step on, without end.

    Raises:
      UserError: the data is wrong; for an example, from the iterator.
    """

  @abc.abstractmethod
  def eval_batches(
    self, split: str, rows: Rows
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns these rows of the batches of one pass over a split.

    The last batch is filled up; `mask` (n,) is 1 for an example, else 0.

    Raises:
      UserError: as `train_batches`.
    """

  def fingerprint(self) -> str:
    """Returns a hash of the data, '' where the source has none.

    Raises:
      UserError: the data is missing or corrupt.
    """
    return ''

  def files(self) -> dict[str, bytes]:
    """Returns what a run keeps in its workdir, by name, such as a tokenizer.

    Raises:
      UserError: something is missing or corrupt.
    """
    return {}

  @classmethod
  def located(cls, config: Any, workdir: pathlib.Path) -> Any:
    """Returns a run's config, with what it kept in place of what it read.

    Args:
      config: of the run.
      workdir: with its `files`.
    """
    del workdir
    return config

  @abc.abstractmethod
  def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and types of a training batch of `size` examples."""

  def prepare(self, batch: Batch, key: PRNGKeyArray | None) -> Batch:
    """Returns a batch as `loss` takes it, on the devices.

    What mixes the examples of a whole batch belongs here: micro-batches are
    cut afterwards.

    Args:
      batch: of `train_batches` or `eval_batches`.
      key: for what is random; None at evaluation.
    """
    del key
    return batch

  @abc.abstractmethod
  def loss(
    self,
    model: Any,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    router_options: dict[str, Any] | None = None,
  ) -> Loss:
    """Returns loss and metrics of a prepared batch.

    Args:
      model: of `make_model`.
      batch: with `mask` at evaluation.
      key: for dropout and routing noise; None at evaluation.
      router_options: further arguments of every router's call, by name, such as
        `threshold`; a task that has no use for them may leave them out.
    """

  @abc.abstractmethod
  def infer(self, model: Any, batch: Batch) -> Any:
    """Returns what the model answers to a batch of `abstract_batch`.

    It is the program whose cost `costs` and `plan` tell as that of inference.
    """

  def write(self, model: Any, prompts: list[str], how: Any) -> list[str]:
    """Returns what a model makes of each prompt, as `generate` prints it.

    Args:
      model: of `make_model`, trained.
      prompts: text that is to be gone on from, or translated.
      how: a `models.generation.Sampling`.

    Raises:
      UserError: the task writes nothing, or a prompt is too long.
    """
    del model, prompts, how
    raise UserError('config.task', self.config.task, 'a task that writes')

  def features(self, model: Any, batch: Batch) -> Float[Array, 'b d']:
    """Returns what the model makes of a batch of images before its head.

    `fewshot` trains linear classifiers on it; other evaluations need it not.

    Args:
      model: of `make_model`.
      batch: as `eval_batches` says, with `mask`.

    Raises:
      UserError: the task has none.
    """
    del model, batch
    raise UserError('config.task', self.config.task, 'a task with `features`')

  def exchange(self, params: Params) -> Params:
    """Returns parameters as runs exchange them, however they are run.

    Args:
      params: of `make_model`, as nested dicts of arrays or of their shapes.
    """
    return params

  def take(self, params: Params) -> Params:
    """Returns parameters of that form as the model has them."""
    return params

  def of_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> 'Task':
    """Returns the task of a model with parameters of these shapes.

    It is what `adopt` takes as the other run's where there is none: it tells
    of a file what no config does, such as the resolution.

    Args:
      shapes: of the parameters, by path as `exchange` has them; some may be
        missing, and are then as in this task.

    Raises:
      UserError: there is no such model.
    """
    del shapes
    return self

  def adopt(self, params: Params, source: Any, fresh: Params) -> Params:
    """Returns parameters of another run, fitted to this task's model.

    Args:
      params: the other run's, as `exchange` gives them; inside `jax.jit`.
      source: the other run's task, of the same class.
      fresh: this model's at creation, in the same form.

    Raises:
      UserError: they cannot be fitted.
    """
    del source, fresh
    if self.config.init_head == 'reset':
      expected = f"'keep': {self.config.task!r} knows no head"
      raise UserError('config.init_head', 'reset', expected)
    return params

  def ratings(self) -> tuple[str, ...]:
    """Returns metrics that can rate a checkpoint; none: whatever is named.

    The highest is best; of a name with 'loss' in it the lowest.
    """
    return ()

  def notes(self) -> dict[str, str]:
    """Returns what a reader of the metrics has to know, by name."""
    return {}

  @abc.abstractmethod
  def evaluators(
    self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh
  ) -> tuple[Evaluator, ...]:
    """Returns what evaluates parameters; `means.over_split` serves most tasks.

    Args:
      graphdef: `nnx.merge(graphdef, params)` is the model.
      mesh: where the parameters are.
    """


def losses(loss: Loss) -> dict[str, Mean]:
  """Returns the parts of the training loss: the task's and those of routers."""
  found = loss.aux.get('losses', {})
  return {'loss': Mean(loss.sum, loss.weight)} | _weighted(loss, found)


def metrics(loss: Loss) -> dict[str, Mean]:
  """Returns the metrics, those of MoE layers as `moe/NAME`."""
  own = {
    name: value if isinstance(value, Mean) else Mean(value, loss.weight)
    for name, value in loss.metrics.items()
  }
  return own | _weighted(loss, loss.aux.get('metrics', {}))


def nonzero(weight: Float[Array, '']) -> Float[Array, '']:
  """Returns the weight to divide by: 1 where there is none."""
  return jnp.where(weight > 0, weight, 1)


def _weighted(loss: Loss, values: dict[str, Array]) -> dict[str, Mean]:
  weights = loss.aux.get('weights', {})
  return {
    f'moe/{name}': Mean(value * weights[name], weights[name])
    if name in weights
    else Mean(value, jnp.zeros(()))
    for name, value in values.items()
  }

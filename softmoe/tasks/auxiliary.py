"""What the MoE layers of a model with two stacks tell, as that of one."""

from typing import Any

from softmoe.tasks import task as task_lib

Aux = dict[str, Any]


def merge(first: Aux, second: Aux, name: str) -> Aux:
  """Returns what the MoE layers of both stacks tell.

  Losses of the second are told apart, each being a mean over its own groups;
  metrics are means over the tokens or groups of both.

  Args:
    first: of one stack, empty where it has no MoE layer.
    second: of the other.
    name: what stands before a loss of the second.
  """
  if not first or not second:
    return first or second
  apart = {f'{name}_{loss}': value for loss, value in second['losses'].items()}
  a, b = first['weights'], second['weights']
  weights = {each: a.get(each, 0.0) + b.get(each, 0.0) for each in a | b}
  weights |= {loss: a[loss] for loss in first['losses'].keys() & a.keys()}
  weights |= {
    f'{name}_{loss}': b[loss] for loss in second['losses'].keys() & b.keys()
  }
  return {
    'losses': first['losses'] | apart,
    'metrics': _means(first, second, weights),
    'weights': weights,
  }


def _means(first: Aux, second: Aux, weights: Aux) -> Aux:
  total = lambda aux, name: aux['metrics'][name] * aux['weights'][name]
  return {
    name: sum(
      total(aux, name) for aux in (first, second) if name in aux['metrics']
    )
    / task_lib.nonzero(weights[name])
    for name in first['metrics'] | second['metrics']
  }

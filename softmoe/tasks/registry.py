"""Tasks by name: those of this package, and a user's own."""

from softmoe import config as config_lib
from softmoe.errors import UserError
from softmoe.tasks import task as task_lib

TASKS = {
  'classification': 'softmoe.tasks.classification:Classification',
  'contrastive': 'softmoe.tasks.contrastive:Contrastive',
  'language': 'softmoe.tasks.language:Language',
  'translation': 'softmoe.tasks.translation:Translation',
}


def find(name: str) -> type[task_lib.Task]:
  """Returns the class of a task.

  Args:
    name: one of TASKS, or 'my_module:MyTask' for a class of one's own.

  Raises:
    UserError: there is no such task, or the class is no `Task`.
  """
  if ':' not in name and name not in TASKS:
    expected = f"one of {sorted(TASKS)}, or 'my_module:MyTask'"
    raise UserError('config.task', name, expected)
  cls = config_lib.load('task', TASKS.get(name, name))
  if not (isinstance(cls, type) and issubclass(cls, task_lib.Task)):
    raise UserError('config.task', name, 'a class that extends `Task`')
  return cls

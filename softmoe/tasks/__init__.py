"""What is learnt: one file a task, behind the protocol of `tasks.task`."""

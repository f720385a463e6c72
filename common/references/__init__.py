"""Fields of the tasks of each kind, one file a kind; ``common.task_reference`` lists them."""

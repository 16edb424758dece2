"""One file per kind of task: examples to features, loss, metrics, and what is shown of it."""

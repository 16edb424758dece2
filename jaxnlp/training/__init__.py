"""Experiments and how they are trained: the config, the step, the loop, checkpoints, and what is seen of a run."""

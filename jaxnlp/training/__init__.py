"""Experiments and how they are trained: the config, the step, the loop, checkpoints, and what a person sees of a run."""

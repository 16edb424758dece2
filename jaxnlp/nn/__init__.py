"""Layers as equations: attention, blocks, embeddings. Knows jax and flax, nothing of text, files or devices."""

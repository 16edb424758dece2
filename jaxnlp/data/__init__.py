"""From text to batches: sources, tokenizers, the tokenised cache, batches."""

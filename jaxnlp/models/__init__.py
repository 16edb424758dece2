"""Bodies (gpt) and what is put on top of any of them (heads)."""

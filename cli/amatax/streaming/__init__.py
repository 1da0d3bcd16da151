"""Stage 4, do it: planned tensors -> bytes, in memory that does not grow with the model."""

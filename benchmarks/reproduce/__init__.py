"""The papers' claims on the small family: what is run, what came out, and a verdict for each. `python -m benchmarks.reproduce`."""

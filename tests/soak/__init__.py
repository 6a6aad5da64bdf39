"""A thousand jobs while everything around them is killed: `python -m tests.soak`."""

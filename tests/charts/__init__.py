"""The Helm chart: `python -m tests.charts`."""

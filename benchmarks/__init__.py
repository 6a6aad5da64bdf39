"""What is timed: each module is one command that prints a table, and JSON with `--json`."""

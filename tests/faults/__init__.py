"""Every fault the service must live through, done for real: `python -m tests.faults`."""

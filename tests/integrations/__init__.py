"""Other services' own clients against this one, unchanged: `python -m tests.integrations`."""

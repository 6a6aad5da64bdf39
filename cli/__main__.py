"""`python -m cli` is `stablesr`: how the embedded mode starts its own children."""

from cli.main import app

app(prog_name="stablesr")

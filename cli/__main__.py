"""`python -m cli` is `stablesr`: how the embedded mode starts its own children."""

from cli.main import app

# Processes of further devices import this module and are not commands.
if __name__ == "__main__":
    app(prog_name="stablesr")

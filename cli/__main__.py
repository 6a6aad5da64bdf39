"""`python -m cli` is `stablesr`: how the embedded mode starts its own children."""

from cli.main import app

if __name__ == "__main__":
    app(prog_name="stablesr")

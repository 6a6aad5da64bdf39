"""Log lines for a person: nothing that a client sends reaches the terminal as it is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jobs.logs import CONSOLE, printable

LINES = """
import logging
import structlog
from jobs.logs import configure_logging
from jobs.settings import Settings

configure_logging(Settings())
sent = {sent!r}
log = structlog.stdlib.get_logger("test")
log.info(sent, path=sent, plain="/" + sent.strip(), nested=[{{sent: sent}}], bytes=sent.encode())
logging.getLogger("other").warning("said %s", sent)
try:
    raise ValueError(sent)
except ValueError:
    log.exception("unexpected")
"""
# A title of the window, the screen cleared in two ways, a line taken back, text from right to left.
SENT = ["\x1b]0;title\x07", "\x1b[2J", "\x9b2J", "a\rb", "\x08\x7f\x00", "\u202e\u2028"]


@pytest.mark.parametrize("sent", SENT)
def test_no_control_character_of_a_client_reaches_the_terminal(sent: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", LINES.format(sent=sent)],
        env={**os.environ, CONSOLE: "1"},
        capture_output=True,
        check=True,
    ).stderr.decode()
    assert "ValueError" in said
    assert [character for character in said if not character.isprintable()].count("\n") > 4
    assert not [c for c in said if not c.isprintable() and c != "\n"]


def test_what_can_be_read_stays_as_it_is() -> None:
    assert printable("a\tb\nGrüße, 写真 😀 \\x1b") == "a\tb\nGrüße, 写真 😀 \\x1b"
    assert printable("\x1b[0m \x9b \udcff") == r"\x1b[0m \x9b \udcff"

"""Calls that tell of a job's end: signed, to public addresses only, repeated until received."""

"""`stablesr upscale IN_DIR OUT_DIR`: all images of a folder, resumable, each on its own.

plan      which images there are, and where the result of each goes
journal   OUT_DIR/.stablesr.jsonl: what was done, with what; a later run goes on from there
run       the whole command, with the work done by this machine
remote    the work done by a server, several images at once
"""

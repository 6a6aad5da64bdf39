"""`stablesr upscale IN_DIR OUT_DIR`: all images of a folder, resumable, each on its own.

plan      which images there are, and where the result of each goes
journal   OUT_DIR/.stablesr.jsonl: what was done, with what; a later run goes on from there
run       what is left to do, done by this machine or, several at once, by a server
view      one progress line for the whole
"""

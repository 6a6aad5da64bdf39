"""The `stablesr` command: starts the parts, and upscales a file with or without a server.

Thin by intent: what a command does lies in `service`, `worker` and `models`, and is imported
only when the command runs, so that `stablesr --help` and `stablesr upscale --server` need
no torch.
"""

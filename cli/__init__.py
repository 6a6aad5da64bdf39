"""The `stablesr` command, thin by intent: `service`, `worker` and `models` do the work, and are
imported only when a command runs, so that help and `upscale --server` need no torch.
"""

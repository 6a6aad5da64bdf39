"""Weights on disk: the released layout's key mapping, and our own folders of safetensors."""

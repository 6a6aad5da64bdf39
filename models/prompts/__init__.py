"""Prompts: from a text to the context that the UNet's cross-attention reads."""

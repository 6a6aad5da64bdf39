"""Sixty results of the embedded model, frozen: a change of structure must not change a pixel."""

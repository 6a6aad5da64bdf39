"""Measures results against originals and other methods.

`comparison` scores methods over pairs of images, `sheets` and `study` make pages that a person
looks at. Needs the extra `evaluate`; nothing that serves images imports it.
"""

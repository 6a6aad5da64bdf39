"""Measures results against originals and other methods, and draws what the paper drew.

`comparison` scores methods over pairs of pictures, `sheets` and `study` make pages that a person
looks at, `figures` holds the experiments. Needs the extra `evaluate`; nothing that serves images
imports it.
"""

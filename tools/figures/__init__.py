"""The paper's figures, drawn anew on whatever weights are given.

`observation` looks into the UNet and leaves parts of the method out, `seams` looks at the borders
of tiles, `ablations` measures what the parts are worth, `plots` draws, `studio` holds the
experiments. Networks are observed and changed by forward hooks that are removed again.
"""

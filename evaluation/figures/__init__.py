"""The paper's figures, drawn anew on whatever weights are given.

`similarity` looks into the UNet, `variants` leaves parts of the method out, `seams` looks at the
borders of tiles, `ablations` measures what the parts are worth, `plots` draws, `run` does it all.
Networks are observed and changed by forward hooks that are removed again; nothing of the path that
serves images is touched.
"""

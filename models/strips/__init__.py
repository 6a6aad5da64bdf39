"""The autoencoder in strips: memory is bounded, the result is the whole image's.

Tiles with blended borders would be another image: group norms and the middle attention look at
all of it. Instead, layers are run one after the other over the whole image, each in strips of full
width (`layers`), and what lies between two layers is kept as a map (`maps`) on the device, on the
host or on disk. Every layer sees at a strip's border the rows that are really there, and zeros
only at the image's.

A network is a list of passes (`executor`). A pass ends where a group norm needs the whole map
before it: its statistics are gathered from the strips as they are written, so the next pass knows
them. A residual block is two passes, one of the fusion's dense blocks, which have no norms, is one
(`autoencoder`); nothing is computed twice but the rows of the halos.

A map is freed block by block while the pass that reads it last goes over it, and that pass's result
takes its place: at no time are more held than two maps of the finest level's width and a few
blocks, beside the encoder's features. At work are the strips and, in the middle, the attention's
keys and values (`attention`). `coding_cost` says beforehand how much that is. Where memory runs out
nevertheless, strips are halved and the strip that failed is done again.

The result differs from the whole image's by rounding alone, in float32 by less than 2e-5 of it;
another height of strips changes it as little, but not by nothing. Above
`StripConfig.attention_keys` latent pixels attention is an approximation, the same for any strips.
"""

from models.strips.coding import EncodedStrips, coding_cost, decode, encode
from models.strips.executor import Callbacks, Cost
from models.strips.maps import FeatureMap, Keep, MapStore, StripConfig

__all__ = [
    "Callbacks",
    "Cost",
    "EncodedStrips",
    "FeatureMap",
    "Keep",
    "MapStore",
    "StripConfig",
    "coding_cost",
    "decode",
    "encode",
]

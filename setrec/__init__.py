"""Generative recommendation with order-agnostic sets of continuous tokens.

Symbols of shapes, used in every docstring of this project:

====  ==================================================================
B     users (or requests) in a batch
L     items in a history
n     slots: tokens of one item, and as many queries
d     width of the backbone's vectors
I     items in the catalogue
D     numbers of an item's folded code (see ``setrec.models.grounding``)
Q     query blocks per user: one per position in training, one in serving
K     anchors of a graph
V     nodes of a graph
====  ==================================================================
"""

import os

# oneDNN keeps compiled primitives of the last 1,024 shapes. Batches differ in shape, so few are used again and their
# memory adds up. It reads this on first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

__version__ = "0.2.0"

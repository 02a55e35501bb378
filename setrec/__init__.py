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

__version__ = "0.2.0"

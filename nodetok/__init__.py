"""Graph nodes as tokens: distances to anchor nodes, and a language model that reads them (NT-LLM, arXiv 2410.10743).

Shapes: V nodes, E edges, K anchors, d backbone width, B prompts, n slots (answers or tokens of one node).
"""

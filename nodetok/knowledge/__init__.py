"""Knowledge-graph completion: relation paths, texts and embeddings, scored together.

Shapes: V entities, R relations, T triples, Q questions [known entity, relation, 0 for the tail or 1 for the head].
"""

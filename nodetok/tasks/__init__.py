"""Tasks that the graph language model is trained on."""

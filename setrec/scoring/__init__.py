"""Score fusion: the model and the components beside it, as one scorer."""

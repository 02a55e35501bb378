"""Score fusion: one scorer that combines the model with further components."""

"""The search for the weights of a hybrid score, on validation users."""

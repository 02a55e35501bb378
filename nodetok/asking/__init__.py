"""Free-text questions to a trained model: question matching, node linking and the supporting subgraph."""

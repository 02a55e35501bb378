"""Graph language model: prompts with node tokens, backbone, training and generation."""

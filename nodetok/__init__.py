"""Graph nodes as tokens: distances to chosen anchor nodes, after NT-LLM."""

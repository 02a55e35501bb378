"""Fine-tuning of the sentence encoder on next items."""

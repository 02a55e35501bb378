"""Free questions to a trained model: which question it is, which nodes it names, what the answer rests on."""

"""What the systems of the ranking table are called, in files and tables alike."""

OURS = "SETRec"
ALONE = "SETRec without transitions"
"""The model alone, which stands beside ours where transitions have a weight."""
SASREC = "SASRec"

"""What the systems of the ranking table are called, in files and tables alike."""

OURS = "SETRec"
ALONE = "SETRec: model alone"
"""The trained model without the components beside it."""
WITHOUT = "SETRec: without model"
"""The components without the trained model, their weights searched anew."""
POPULARITY, ITEM_KNN, SASREC = "Popularity", "ItemKNN", "SASRec"

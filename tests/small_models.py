"""Small recommenders for tests."""

import torch

from setrec.models.item_tokens import ItemFeatures
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import BackboneSettings, ModelSettings

ITEMS = 40


def small_model(features: ItemFeatures, family: str = "qwen3", history: str = "set", **changes) -> SetRecModel:
    """A two-layer model in evaluation mode, the same weights at every call."""
    torch.manual_seed(7)
    plain = {"semantic_tokens": 3, "hidden": (48, 24), "text_slot": 0, "query_mode": "last_item", "id_dropout": 0.0}
    settings = ModelSettings(backbone=BackboneSettings(family=family), history=history, **(plain | changes))
    model = SetRecModel.build(settings, features).eval()
    # Biases start at zero, where a forgotten constant would go unnoticed.
    with torch.no_grad():
        for name, parameter in model.tokens.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
        model.queries.normal_(std=1.0)
    return model

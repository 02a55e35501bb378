"""Schemas of the catalogue and the model."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class FoundItem(BaseModel):
    """An item whose title contains the text."""

    item_id: str
    title: str
    attributes: dict[str, list[str]]


class FoundItems(BaseModel):
    """Matching items: those added since the bundle was written first, then by number of training interactions."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    items: list[FoundItem]


class RecallAnswer(BaseModel):
    """Recall of answers against exact search."""

    at_export: float | None = Field(description="Measured when the bundle was written.")
    low: float | None = Field(description="Lower end of its 95% interval.")
    high: float | None = Field(description="Upper end of its 95% interval.")
    queries: int = Field(description="Number of answers compared at export.")
    live: float | None = Field(
        description="Recall of the latest audited answers of this replica; `null` before the first."
    )


class ModelAnswer(BaseModel):
    """The served model."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    created: datetime
    items: int
    new_items: int = Field(description="Number of items without training interactions.")
    live_items: int = Field(description="Number of items added since the bundle was written.")
    users: int
    retriever: str
    terms: list[str] = Field(description="Slot kinds and components: the valid names in `factors` and `by`.")
    attributes: dict[str, list[str]] = Field(description="Attributes with their most frequent values, at most 50.")
    rules: list[str] = Field(description="Names of the rule sets.")
    recall: RecallAnswer

"""What travels over HTTP about the catalogue and the model."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class FoundItem(BaseModel):
    """An item whose title holds the text."""

    item_id: str
    title: str
    attributes: dict[str, list[str]]


class FoundItems(BaseModel):
    """Items put since the bundle was made come first, then those of most training interactions."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    items: list[FoundItem]


class RecallAnswer(BaseModel):
    """How much of the exact best the answers hold."""

    at_export: float | None = Field(description="Measured when the bundle was written.")
    low: float | None = Field(description="Lower end of its 95% interval.")
    high: float | None = Field(description="Upper end of its 95% interval.")
    queries: int = Field(description="Answers that were compared at export.")
    live: float | None = Field(description="Of the latest audited answers of this replica; `null` before the first.")


class ModelAnswer(BaseModel):
    """What is served."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    created: datetime
    items: int
    new_items: int = Field(description="How many of them have no training interactions.")
    live_items: int = Field(description="How many were put since the bundle was made.")
    users: int
    retriever: str
    terms: list[str] = Field(description="Slot kinds and components: what `factors` and `by` may name.")
    attributes: dict[str, list[str]] = Field(description="Attributes with their most frequent values, at most 50.")
    rules: list[str] = Field(description="Names of the rule sets.")
    recall: RecallAnswer

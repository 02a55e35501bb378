"""Schemas of rule sets; a rule set itself is :class:`serving.engine.rules.RuleSet`."""

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel

from serving.engine.rules import RuleSet

RulesName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class RulesPut(BaseModel):
    """Confirmation: this replica applies the rule set, and all others do within two seconds."""

    name: str
    created: bool


class RulesRemoved(BaseModel):
    """Confirmation: this replica no longer applies the rule set, and all others stop within two seconds."""

    name: str


class RulesList(BaseModel):
    """All rule sets by name; ``default`` is applied to requests that name none."""

    rules: dict[str, RuleSet]

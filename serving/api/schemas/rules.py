"""What travels over HTTP about rule sets; a rule set itself is :class:`serving.engine.rules.RuleSet`."""

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel

from serving.engine.rules import RuleSet

RulesName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class RulesPut(BaseModel):
    """The rule set is applied by this replica, and by all others within two seconds."""

    name: str
    created: bool


class RulesRemoved(BaseModel):
    """The rule set is no longer applied by this replica, nor within two seconds by any other."""

    name: str


class RulesList(BaseModel):
    """All rule sets by name; ``default`` is applied to requests that name none."""

    rules: dict[str, RuleSet]

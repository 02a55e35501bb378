"""The base of every configuration object."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen, typed configuration: unknown keys are refused, values are validated once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

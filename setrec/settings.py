"""The base of every configuration object."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Precision = Literal["auto", "bf16", "float32"]


class Settings(BaseModel):
    """A frozen, typed configuration: unknown keys are refused, values are validated once."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

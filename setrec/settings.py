"""Base class of all configuration objects."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Precision = Literal["auto", "bf16", "float32"]


def _of_this_machine(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        raise ValueError("must be a path on this machine, not a URI")
    return value


LocalPath = Annotated[Path, BeforeValidator(_of_this_machine)]
"""A local path; pathlib would turn a URI into a folder of that name."""


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that every library takes."""


class Settings(BaseModel):
    """A frozen, typed configuration: unknown keys are rejected, values are validated once."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

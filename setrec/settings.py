"""The base of every configuration object."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

Precision = Literal["auto", "bf16", "float32"]


def _of_this_machine(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        raise ValueError("must be a path on this machine, not a URI")
    return value


LocalPath = Annotated[Path, BeforeValidator(_of_this_machine)]
"""A path; of a URI, pathlib would make a folder of that name."""


class Settings(BaseModel):
    """A frozen, typed configuration: unknown keys are refused, values are validated once."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

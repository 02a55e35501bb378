"""Errors of a configuration: all at once, each with its key and value, what is allowed and the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipelines.config.sections import EvaluationSettings, GateSettings
from setrec.errors import ConfigError

_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_PLAIN = {
    r"^Input is not a valid path for <class .*>$": "must be one path",
    r"^Input should be a valid dictionary or instance of \w+$": "must be a section of keys",
    r"^Input should be a valid dictionary$": "must be a mapping",
    r"^Input should be a valid (tuple|list)$": "must be a list",
    r"^Input should be a valid string$": "must be text",
    r"^Keys should be strings$": "a key must be text",
    r"^Input should be a valid integer.*$": "must be a whole number",
    r"^Input should be a valid dictionary or object to extract fields from$": "must be a section of keys",
    r"^Unable to extract tag using discriminator '(\w+)'$": r"\1 is missing",
    r"^Input tag '.*' found using '(\w+)' does not match any of the expected tags: (.*)$": r"\1 must be one of \2",
    r"^(List|Tuple) should have at least (\d+) items? after validation, not \d+$": r"must have at least \2 element",
    r"^(List|Tuple) should have at most (\d+) items? after validation, not \d+$": r"must have at most \2 elements",
}
"""Messages of pydantic in terms of Python, and their replacements in terms of YAML."""
_METRIC = re.compile(r"(ndcg|recall|mrr)@([1-9]\d*)")


@dataclass(frozen=True)
class SettingsProblem:
    """A key of the configuration, such as ``training.epochs``, and its error."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class SettingsError(ConfigError):
    """A configuration with ``problems``; the message lists all of them, one per line."""

    def __init__(self, source: str, problems: Sequence[SettingsProblem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in problems]
        head = f"{source}: " if len(lines) == 1 else f"{source}: {len(lines)} settings cannot be used:\n  "
        super().__init__(head + "\n  ".join(lines))


def problems_of(error: ValidationError, model: type[BaseModel], raw: Mapping[str, Any]) -> list[SettingsProblem]:
    """Return the problems that pydantic found in ``raw``, one per key, in its order."""
    found: dict[str, SettingsProblem] = {}
    for one in error.errors():
        path = _path(raw, one["loc"], missing=one["type"] == "missing")
        field = path[:-1] if path and isinstance(path[-1], int) else path
        key = ".".join(map(str, field))
        message = _message(dict(one), model, path)
        if key in found and one["type"] != "too_short" and message not in found[key].message:
            reason = message.removeprefix(f"{_shown(one['input'])}: ")
            message = f"{found[key].message}; or {reason}"
        elif key in found:
            continue
        found[key] = SettingsProblem(key, message)
    # A list is also too short without its invalid elements, which need not be reported.
    return [found[key] for key in found if not any(other.startswith(f"{key}.") for other in found)]


def conflicts(raw: Mapping[str, Any]) -> Iterator[SettingsProblem]:
    """Return settings of ``raw`` that are allowed separately but not together."""
    sections = {name: raw.get(name) for name in ("gate", "evaluation")}
    stated = {name: section if isinstance(section, Mapping) else {} for name, section in sections.items()}
    given = stated["gate"].get("metric", GateSettings().metric)
    ks = stated["evaluation"].get("ks", EvaluationSettings().ks)
    metric = _METRIC.fullmatch(given) if isinstance(given, str) else None
    if isinstance(given, str) and metric is None:
        yield SettingsProblem("gate.metric", f"'{given}': a metric and its cut-off are expected, as ndcg@10")
    elif metric is not None and isinstance(ks, list | tuple) and ks and int(metric[2]) not in ks:
        yield SettingsProblem("gate.metric", f"'{given}': its cut-off must be in evaluation.ks, {list(ks)}")
    if isinstance(names := stated["evaluation"].get("components"), list):
        from setrec.scoring import registry

        for name in (name for name in names if name not in registry.kinds()):
            yield SettingsProblem("evaluation.components", f"'{name}': must be one of {', '.join(registry.kinds())}")


def unknown_keys(model: type[BaseModel], keys: Iterable[Any]) -> Iterator[SettingsProblem]:
    """Return the searched ``keys`` that ``model`` does not have."""
    known = set(_keys(model))
    for key in (str(key) for key in keys):
        if key not in known:
            near = _nearest(model, key.split("."))
            said = "no such setting" + (f"; the nearest is {near}" if near else "")
            yield SettingsProblem(f"tune.space.{key}", said)


def _path(raw: Any, loc: Sequence[Any], *, missing: bool) -> list[Any]:
    """Return the location in the input, without the kinds of a union that pydantic adds."""
    path: list[Any] = []
    for at, part in enumerate(loc):
        inside = isinstance(raw, Mapping) and part in raw
        inside = inside or (isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw))
        if inside:
            raw = raw[part]
            path.append(part)
        elif missing and at == len(loc) - 1:
            path.append(part)
    return path


def _message(error: dict[str, Any], model: type[BaseModel], path: list[Any]) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        near = _nearest(model, path)
        return "no such setting" + (f"; the nearest is {near}" if near else "")
    reason = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    for pattern, plain in _PLAIN.items():
        reason = re.sub(pattern, plain, reason)
    reason = re.sub(
        r"^Input (should be|is not) ", lambda found: {"should be": "must be ", "is not": "is not "}[found[1]], reason
    )
    if bounds := _bounds(_field(model, path)):
        if error["type"].startswith(("greater_than", "less_than", "finite")):
            reason = f"must be {bounds}"
        elif bounds not in reason:
            reason = f"{reason}, {bounds}"
    return f"{_shown(error['input'])}: {reason}"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _field(model: type[BaseModel], path: Sequence[Any]) -> FieldInfo | None:
    """Return the field at a path, for elements that of the sequence; ``None`` inside unions."""
    found: FieldInfo | None = None
    for part in path:
        if isinstance(part, int):
            continue
        if part not in model.model_fields:
            return None
        found = model.model_fields[part]
        model = next(iter(_models(found)), BaseModel)
    return found


def _models(field: FieldInfo) -> Iterator[type[BaseModel]]:
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def _bounds(field: FieldInfo | None) -> str:
    if field is None:
        return ""
    elements = [part for kind in get_args(field.annotation) for part in getattr(kind, "__metadata__", ())]
    metadata = [*field.metadata, *(inner for part in elements for inner in (part, *getattr(part, "metadata", ())))]
    said = [
        f"{word} {getattr(part, name)}" for part in metadata for name, word in _BOUNDS.items() if hasattr(part, name)
    ]
    return " and ".join(dict.fromkeys(said))


def _nearest(model: type[BaseModel], path: Sequence[Any]) -> str | None:
    """Return the known key that is most similar to an unknown one: of its section, else of any."""
    names = [str(part) for part in path]
    every = list(_keys(model))
    prefix = ".".join(names[:-1])
    siblings = [key for key in every if key.rpartition(".")[0] == prefix]
    leaves = {key.rpartition(".")[2]: key for key in (*every, *siblings)}
    if near := difflib.get_close_matches(".".join(names), siblings, 1, 0.6):
        return near[0]
    if names[-1] in leaves:  # of another section
        return leaves[names[-1]]
    found = difflib.get_close_matches(names[-1], leaves, 1, 0.6)
    return leaves[found[0]] if found else None


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models(field):
            yield from _keys(inner, f"{prefix}{name}.")

"""YAML files whose content is a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from setrec.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses a duplicate key, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See PyYAML."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and str(key.value) in seen:
                reason = f"the key '{key.value}' appears twice"
                raise yaml.constructor.ConstructorError(None, None, reason, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Return the plain values in ``text``; a mapping that repeats a key is refused.

    Raises:
        yaml.YAMLError: ``text`` is not such YAML.
    """
    return yaml.load(text, _Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the sections of a YAML file as plain values.

    Raises:
        ConfigError: the file cannot be read, repeats a key, or is not a mapping.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark, what = error.problem_mark, error.problem or error.context
        raise ConfigError(f"{path}: not YAML: {what}" + (f", line {mark.line + 1}" if mark else "")) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a mapping of sections is expected")
    return raw


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` updated by ``change``, recursively for nested mappings."""
    result = dict(base)
    for key, value in change.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result

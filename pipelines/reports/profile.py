"""The report of ``setrec check`` as text."""

from __future__ import annotations

from typing import Any


def profile_lines(found: dict[str, Any]) -> list[str]:
    """Return a line per fact, errors last."""
    lines = []
    if "rows" in found:
        dropped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in found["dropped"].items())
        splits = ", ".join(f"{count} {name}" for name, count in found["splits"].items())
        text = ", ".join(found["text"]) or "none"
        lines = [
            f"rows          {found['rows']}, {found['rejected']} rejected ({found['rejected_share']:.1%})",
            *(f"              {count} of {table}: {reason}" for table, reasons in found["rejected_reasons"].items()
              for reason, count in reasons.items()),
            f"dropped       {dropped or 'none'}",
            f"left          {found['interactions']} interactions, {found['users']} users, {found['items']} items",
            f"equal times   {found['equal_times_share']:.1%} of the interactions",
            f"splits        {splits}",
            f"cold items    {found['cold_item_share']:.1%}",
            f"text          {text}; {found['items_without_text']} items without any",
            f"attributes    {', '.join(found['attributes']) or 'none'}",
        ]  # fmt: skip
    lines += [f"error         {e['key']}: {e['message']}" if e["key"] else f"error         {e['message']}"
              for e in found["errors"]]  # fmt: skip
    return lines if found["errors"] else [*lines, "no errors"]

"""The report of ``setrec check`` as text."""

from __future__ import annotations

from typing import Any


def profile_lines(profile: dict[str, Any]) -> list[str]:
    """Return a line per fact, errors last."""
    lines = []
    if "rows" in profile:
        dropped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in profile["dropped"].items())
        splits = ", ".join(f"{count} {name}" for name, count in profile["splits"].items())
        text = ", ".join(profile["text"]) or "none"
        lines = [
            f"rows          {profile['rows']}, {profile['rejected']} rejected ({profile['rejected_share']:.1%})",
            *(f"              {count} of {table}: {reason}" for table, reasons in profile["rejected_reasons"].items()
              for reason, count in reasons.items()),
            f"dropped       {dropped or 'none'}",
            f"left          {profile['interactions']} interactions, {profile['users']} users, {profile['items']} items",
            f"equal times   {profile['equal_times_share']:.1%} of the interactions",
            f"splits        {splits}",
            f"cold items    {profile['cold_item_share']:.1%}",
            f"text          {text}; {profile['items_without_text']} items without any",
            f"attributes    {', '.join(profile['attributes']) or 'none'}",
        ]  # fmt: skip
    lines += [f"error         {e['key']}: {e['message']}" if e["key"] else f"error         {e['message']}"
              for e in profile["errors"]]  # fmt: skip
    return lines if profile["errors"] else [*lines, "no errors"]

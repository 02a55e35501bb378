"""Linking of the nodes that a question names: by ``[[id]]``, by id or title, or by a search of the node texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import cached_property

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from setrec.errors import SetRecError, UnknownNodeError

MENTION = re.compile(r"\[\[(.+?)\]\](?!\])", re.DOTALL)
TITLE_WORDS = 8
NEAR, MARGIN = 0.35, 0.02
"""Minimum cosine of a text found by search, and its minimum margin over the second."""

_BEFORE, _AFTER = re.compile(r"(?:(?<=\s)|^)[-+]$"), re.compile(r"[+#]+(?=$|[\s?.,;:!)])")
"""Signs that are part of a name."""
_WORD = re.compile(r"[^\W_]+(?:[-'.:/_@][^\W_]+)*|\"[^\"]+\"")


class AmbiguousNodeError(SetRecError):
    """The words of a question match several nodes."""


class NodeFinder:
    """Links names in questions to nodes.

    Args:
        ids, texts: of every node, in row order; a node's title is its text up to the first punctuation mark.
        reserved: words of questions, which name a node only in double brackets.
    """

    def __init__(self, ids: Sequence[str], texts: Sequence[str] | None, reserved: Collection[str]) -> None:
        self.ids, self.texts = ids, texts
        self.reserved = {*(word.lower() for word in reserved), *ENGLISH_STOP_WORDS}

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {node: row for row, node in enumerate(self.ids)}

    @cached_property
    def _names(self) -> dict[str, list[int]]:
        """Return rows by lower-cased id, title, and first word of a title."""
        rows_of: dict[str, list[int]] = {}
        for row, node in enumerate(self.ids):
            rows_of.setdefault(_normal(node), []).append(row)
        first: dict[str, list[int]] = {}
        for row, text in enumerate(self.texts or ()):
            title = _normal(re.split(r"[,;:.(\n]", text or "", maxsplit=1)[0])
            words = title.split()
            if words and len(words) <= TITLE_WORDS:
                rows = rows_of.setdefault(title, [])
                if row not in rows:
                    rows.append(row)
                first.setdefault(words[0], []).append(row)
        for word, rows in first.items():
            rows_of.setdefault(word, rows)
        # A title such as "the class" would be found in every question about a class.
        return {name: rows for name, rows in rows_of.items() if not self.reserved.issuperset(name.split())}

    def find(self, question: str) -> tuple[str, list[int]]:
        """Return the question with ``[[0]]``, ``[[1]]`` ... in place of nodes, and the rows of these nodes.

        Raises:
            UnknownNodeError: an id in double brackets is not in the graph.
            AmbiguousNodeError: a title or a search fits several nodes equally well.
        """
        rows: list[int] = []

        def slot(row: int) -> str:
            if row not in rows:
                rows.append(row)
            return f" [[{rows.index(row)}]] "

        if MENTION.search(question):
            text = MENTION.sub(lambda match: slot(self._row(match[1])), question)
        else:
            text = self._by_name(question, slot)
            if not rows and self.texts is not None:
                text = self._by_search(question, slot)
        return " ".join(text.split()), rows

    def _row(self, mention: str) -> int:
        for node in (mention, mention.strip(" []")):
            if node in self._row_of:
                return self._row_of[node]
        raise UnknownNodeError(f"unknown node {node!r}")

    def _by_name(self, question: str, slot: Callable[[int], str]) -> str:
        """Replace names by slots, the longest match first."""
        words = list(_WORD.finditer(question))
        out, at, index = "", 0, 0
        while index < len(words):
            for length in range(min(TITLE_WORDS, len(words) - index), 0, -1):
                begin, end = words[index].start(), words[index + length - 1].end()
                rows = self._signed(question, begin, end, self._names.get(_normal(question[begin:end]), ()))
                if rows:
                    out += question[at:begin] + slot(self._one(question[begin:end], rows))
                    at, index = end, index + length
                    break
            else:
                index += 1
        return out + question[at:]

    def _signed(self, question: str, begin: int, end: int, rows: Sequence[int]) -> list[int]:
        """Return those of ``rows`` that are named with the signs at the ends of the name: -5 is not 5, nor C# C++."""
        before, after = _BEFORE.search(question[:begin]), _AFTER.match(question[end:])
        name = " ".join(
            f"{before[0] if before else ''}{question[begin:end]}{after[0] if after else ''}".lower().split()
        )
        signed = bool(before or after)

        def fits(row: int) -> bool:
            own = self.ids[row].lower()
            if signed:
                return own == name or (self.texts is not None and (self.texts[row] or "").lower().startswith(name))
            return _normal(own) != _normal(name) or not (_BEFORE.search(own[:1]) or _AFTER.match(own[-1:]))

        return [row for row in rows if fits(row)]

    def _one(self, name: str, rows: Sequence[int]) -> int:
        if len(rows) > 1:
            some = ", ".join(repr(self.ids[row]) for row in rows[:3])
            raise AmbiguousNodeError(f"{name!r} names {len(rows)} nodes ({some} ...): name one as [[id]]")
        return rows[0]

    @cached_property
    def _index(self) -> tuple[TfidfVectorizer, sparse.csr_matrix]:
        vectorizer = TfidfVectorizer(stop_words="english", sublinear_tf=True)
        return vectorizer, vectorizer.fit_transform([text or "" for text in self.texts or ()])

    def _by_search(self, question: str, slot: Callable[[int], str]) -> str:
        """Replace runs of unreserved words by the nodes whose texts match them best."""
        runs: list[tuple[int, int]] = []
        for word in _WORD.finditer(question):
            if word[0].lower() in self.reserved:
                continue
            gap = question[runs[-1][1] : word.start()] if runs else ""
            if runs and all(between.lower() in ENGLISH_STOP_WORDS - {"and", "or"} for between in gap.split()):
                runs[-1] = (runs[-1][0], word.end())
            else:
                runs.append((word.start(), word.end()))
        out, at = "", 0
        for begin, end in runs:
            row = self._search(question[begin:end])
            if row is not None:
                out += question[at:begin] + slot(row)
                at = end
        return out + question[at:]

    def _search(self, phrase: str) -> int | None:
        vectorizer, texts = self._index
        scores = np.asarray((texts @ vectorizer.transform([phrase]).T).todense()).ravel()
        best = np.argsort(-scores, kind="stable")[:2]
        if scores[best[0]] < NEAR:
            return None
        if len(best) > 1 and scores[best[0]] - scores[best[1]] < MARGIN:
            return self._one(phrase, np.flatnonzero(scores > scores[best[0]] - MARGIN).tolist())
        return int(best[0])


def _normal(name: str) -> str:
    return " ".join(re.findall(r"[^\W_]+(?:[-'.:/_@][^\W_]+)*", name.lower()))

"""Matching of free-text questions to the questions that a model was trained on.

The matcher is a linear classifier over words and character n-grams, with a class for all other questions. It is fitted
to the wordings of :mod:`nodetok.asking.wordings` when it is built, so nothing is stored; its threshold is chosen on
held-out wordings. A question is rejected if most of its content words occur in no wording, or if it contains a word
that reverses a question: for a linear classifier "not near" and "farther" are similar to "near".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from nodetok.asking.wordings import (
    CLASSIFICATION,
    EDGE_CLASSIFICATION,
    OUTSIDE,
    STRUCTURE,
    TEMPLATES,
    Wordings,
    plain_question,
)

SLOT = re.compile(r"\[\[(\d+)\]\]")
NODE = "nodeslot"
OTHER = ""
FRAMES = ("please tell me : {}", "{} please", "in this graph , {}", "i would like to know , {}", "can you say {}")
SYNONYMS = (
    ("hops", "steps", "edges", "links", "jumps", "moves"),
    ("shortest", "quickest", "smallest", "minimal", "minimum", "least"),
    ("path", "route", "way", "chain", "trail"),
    ("closer", "nearer"),
    ("neighbours", "neighbors", "contacts", "friends", "connections", "adjacent nodes"),
    ("directly", "immediately"),
    ("edge", "link", "connection"),
    ("nodes", "vertices"),
    ("reach", "arrive at", "get to"),
    ("class", "category", "label", "group", "type", "topic"),
)
_REVERSED = re.compile(
    r"\b(?<!or )not?\b|n['’]t\b|\b(never|neither|nor|without|cannot|unless|except"
    r"|un(connect|reach|link|relat)\w*|dis(connect|join)\w*"
    r"|(far|furth)(er|est)|(most|more) (distant|remote)|less (near|close)\w*|longe(r|st)|different)\b"
)
_JOINED = re.compile(r"^\W*(or|and|than|versus|vs\.?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Match:
    """A match: ``template`` is the training question, or ``""`` for none; ``probability`` of the match; ``order``: the
    mention that fills each slot of the template."""

    template: str
    probability: float
    order: tuple[int, ...]


class QuestionMatcher:
    """Matches free questions, their nodes written as ``[[0]]``, ``[[1]]`` ..., to templates.

    Args:
        wordings: other wordings of each template; without any, a question must have the words of a template.
    """

    def __init__(self, wordings: Mapping[str, Wordings]) -> None:
        self.templates = tuple(wordings)
        self.slots = {template: len(set(SLOT.findall(template))) for template in wordings}
        learned = {template: (plain_question(template), *w.train) for template, w in wordings.items()}
        self._exact = {_same(template): template for template in wordings}
        self._classifier: Any = None
        self.threshold = 0.0
        if not any(w.train for w in wordings.values()):
            return
        # Otherwise a question that the model was not trained on would be matched to the most similar one.
        known = {*map(plain_question, wordings), *(text for w in wordings.values() for text in w.every)}
        others = [text for name, texts in STRUCTURE.items() for text in (plain_question(TEMPLATES[name]), *texts)]
        others = [text for text in (*others, *CLASSIFICATION, *EDGE_CLASSIFICATION) if text not in known]
        outside = [*OUTSIDE, *others]
        self._fit(learned, [text for row, text in enumerate(outside) if row % 4])
        self.threshold = self._calibrated(wordings, outside[::4])
        every = {template: (*texts, *wordings[template].valid) for template, texts in learned.items()}
        self._fit(every, outside)

    def _fit(self, wordings: Mapping[str, Sequence[str]], outside: Sequence[str]) -> None:
        texts: list[str] = []
        classes: list[str] = []
        for template, given in wordings.items():
            for text in given:
                for other in _synonyms(text):
                    texts += [other, FRAMES[len(texts) % len(FRAMES)].format(other)]
                    classes += [template, template]
        self._known = {_stem(word) for text in texts for word in _content(text)}
        for text in outside:
            texts += [text, FRAMES[len(texts) % len(FRAMES)].format(text)]
            classes += [OTHER, OTHER]
        self._words = TfidfVectorizer(ngram_range=(1, 3), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
        self._letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
        plain = [_plain(text) for text in texts]
        features = sparse.hstack([self._words.fit_transform(plain), self._letters.fit_transform(plain)])
        self._classifier = LogisticRegression(C=10.0, max_iter=60, tol=1e-3).fit(features.tocsr(), classes)

    def _calibrated(self, wordings: Mapping[str, Wordings], outside: Sequence[str]) -> float:
        """Return the threshold that best separates recognised validation wordings from questions outside."""
        inside = np.array([
            self._best(text)[1] for template, w in wordings.items() for text in w.valid
            if self._best(text)[0] == template
        ])  # fmt: skip
        other = np.array([self._best(text)[1] for text in outside])
        tried = np.linspace(0.05, 0.95, 91)
        gain = np.array([(inside >= t).mean() - (other >= t).mean() for t in tried])
        return float(tried[gain >= gain.max() - 1e-9].mean())

    def _best(self, question: str) -> tuple[str, float]:
        """Return the most likely template with as many slots as the question has nodes, and its probability relative to
        the outside class; ``""`` and 0 without one."""
        nodes = len(set(SLOT.findall(question)))
        plain = [_plain(question)]
        features = sparse.hstack([self._words.transform(plain), self._letters.transform(plain)])
        chances = dict(zip(self._classifier.classes_, self._classifier.predict_proba(features.tocsr())[0], strict=True))
        fitting = [template for template in self.templates if self.slots[template] == nodes]
        content = {_stem(word) for word in _content(question)}
        if not fitting or len(content - self._known) > len(content) / 2 or _REVERSED.search(plain[0]):
            return OTHER, 0.0
        template = max(fitting, key=lambda t: chances[t])
        return template, float(chances[template] / (chances[template] + chances[OTHER]))

    def match(self, question: str) -> Match:
        """Match a question to a template with the same number of nodes."""
        mentions = [int(slot) for slot in SLOT.findall(question)]
        nodes = list(dict.fromkeys(mentions))
        if (exact := self._exact.get(_same(question))) is not None:
            return Match(exact, 1.0, tuple(range(len(nodes))))
        template, probability = (OTHER, 0.0) if self._classifier is None else self._best(question)
        if template == OTHER or probability < self.threshold:
            return Match(OTHER, 0.0, ())
        return Match(template, probability, _order(question, nodes))


def _synonyms(text: str) -> list[str]:
    """Return the text and its variants in which a word is replaced by a synonym."""
    variants = [text]
    for group in SYNONYMS:
        for word in group:
            if re.search(rf"\b{word}\b", text):
                variants += [re.sub(rf"\b{word}\b", other, text) for other in group if other != word]
    return variants


def _content(text: str) -> list[str]:
    words = re.findall(r"[^\W\d_]{2,}", SLOT.sub(" ", text).lower())
    return [word for word in words if word not in ENGLISH_STOP_WORDS]


def _stem(word: str) -> str:
    return word[:5]


def _same(text: str) -> str:
    return re.sub(r"[\W_]+", " ", plain_question(text.lower())).strip()


def _plain(text: str) -> str:
    return SLOT.sub(f" {NODE} ", text).lower()


def _order(question: str, nodes: Sequence[int]) -> tuple[int, ...]:
    """Return mentions in the order of a template's slots. Of three, the reference node comes first, followed by the two
    nodes joined by ``or``, ``and`` or ``than``; fewer keep the order of the question."""
    if len(nodes) != 3:
        return tuple(nodes)
    parts = SLOT.split(question)
    places: dict[int, int] = {}
    for index in range(1, len(parts), 2):
        places.setdefault(int(parts[index]), index)
    first, second = places[nodes[0]], places[nodes[1]]
    between = [" ".join(parts[first + 1 : second : 2]), " ".join(parts[second + 1 : places[nodes[2]] : 2])]
    joined = [bool(_JOINED.match(text)) for text in between]
    if joined[0] and not joined[1]:
        return (nodes[2], nodes[0], nodes[1])
    if not any(joined) and " than " in f" {between[0]} ":
        return (nodes[2], nodes[0], nodes[1])
    return (nodes[0], nodes[1], nodes[2])

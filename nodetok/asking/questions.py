"""Matching of free-text questions to the questions that a model was trained on.

The matcher is a linear classifier over n-grams of words, of their meanings and of letters, with a class for all other
questions. It is fitted to the wordings of :mod:`nodetok.asking.wordings` when it is built, so nothing is stored; its
threshold is chosen in cross-validation. To a linear classifier a question that differs in one word is similar, whatever
the word. So rules reject a question first if it asks for another kind of answer than a template (yes or no, a number),
if it contains a word that changes a question ("not", "farther", "five"), or if a noun, an adjective ("how many authors
...", "is the distance ... even") or most content words occur in no wording.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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
BEGIN, END, UNKNOWN = "textbegins", "textends", "unknownword"
_WORD = re.compile(rf"\b(?!{NODE}|{BEGIN}|{END})[^\W\d_]{{2,}}")
FOLDS = 3
_POLITE = re.compile(
    r"^\W*(?:(?:please|kindly|hello|hi|hey|ok|okay|so|well|then|now|and|but)\b\W*"
    r"|(?:can|could|would|will|do) (?:you|we|i) (?:please |kindly )?"
    r"(?=tell|say|give|check|find|see|compute|calc|count|work|know|det)"
    r"|(?:tell|give) (?:me|us)\b\W*"
    r"|(?:i|we)(?: would|['’]d)? (?:want|need|wish|like)(?: to (?:know|find out|see|ask))?\W*"
    r"|(?:say|check|find out|work out|determine|know|see)\b\s*|(?:if|whether)\b(?! i| you)\s*"
    r"|(?:in|on|for) (?:this|the|my|our) (?:graph|network|data)\W*)*"
    r"|\W+(?:please|thanks|thank you|in (?:this|the|my|our) (?:graph|network|data)|here|now|exactly)*\W*$"
)
"""Words at the start and the end of a question that add nothing to it."""
_STATEMENT = re.compile(rf"^({NODE}(?: (?:and|,) {NODE})?) (is|are|can|has|have) ")
"""The start of "(whether) a is ...", asked as "is a ..."."""
CONCEPTS = {
    "separation": "degrees? of separation",
    "coneighbour": "common neighbou?rs?|mutual (?:contacts?|friends?|connections?)",
    "besides": "next to|beside|adjacent (?:to|with)|bordering(?: on)?|attached to|adjacent",
    "shortly": "at least|at minimum|minimum|minimal|shortest|quickest|smallest|fewest|least",
    "directly": "direct(?:ly)?|immediate(?:ly)?|straight|single|one(?= (?:hop|step|edge|link))|one-hop",
    "sharing": "in common|shared?|sharing|mutual|joint(?:ly)?|both|overlap(?:s|ping)?|intersection|as well|also|too",
    "neighbours": "neighbou?rs|neighbou?rhoods?|contacts|friends",
    "neighbour": "neighbou?r|neighbou?ring|border|touch(?:es)?",
    "counting": "how many|numbers? of|count(?: of)?",
    "apart": "distant|distance|far|separat(?:e|es|ed|ing|ion)|length|long",
    "hops": "hops|steps|jumps|moves|degrees",
    "edge": "edge|link|tie|line|arc",
    "edges": "edges|links|ties|lines|arcs|connections",
    "path": "path|route|way|chain|trail|walk|sequence|series",
    "paths": "paths|routes|ways|chains|trails|walks|sequences",
    "reach": "reach(?:able|ed)?|accessible|get|got|go|goes|going|travel|arrive|come|follow(?:ing)?|leads?|takes?",
    "connected": "connect(?:s|ed|ing)?|join(?:s|ed|ing)?|linked|linking|tied|attached",
    "component": "component|piece|part|cluster|subgraph|island",
    "nearer": "closer|nearer|closest|nearest|sooner|faster|less far|less distant",
    "near": "near|close",
    "nodes": "nodes|vertices|papers|people|entities",
    "node": "node|vertex|paper|person|entity",
    "size": "size|big|large|high",
    "class": "class|category|label|group|type|topic|kind|sort",
    "give": "give|tell|say|find|compute|calculate|name",
}
"""Words by meaning: a question is matched in its own words and in these."""
_CONCEPTS = re.compile("|".join(rf"\b(?P<{name}>{words})\b" for name, words in CONCEPTS.items()))
NEUTRAL = (
    "graph", "network", "data", "possible", "exact", "actual", "other", "available", "existing", "given", "please",
    "here", "now", "altogether", "exist", "really",
)  # fmt: skip
"""Words that may be added to a question without changing it."""
_FUNCTION = ENGLISH_STOP_WORDS - {
    "even", "more", "most", "less", "last", "next", "third", "two", "three", "four", "five", "six", "eight", "nine",
    "ten", "eleven", "twelve", "top", "back", "full", "empty", "side", "show", "cry", "fire", "system", "bill", "name",
}  # fmt: skip
_NOUN = re.compile(r"\b(?:the|an?|any|some|no|this|what|which|many|much|how|counting|of|same|each|every|per)\s+$")
_YES_OR_NO = re.compile(
    rf"^{BEGIN}\W*(is|are|was|were|do|does|did|has|have|had|will|would|should|may|might|must|can|could)\b"
    r"(?!.*\b(how|what|which|who|or|than|count|number)\b)"
)
_HOW = re.compile(r"\bhow (?!would|is|are|do|does|can)\w+")
_QUANTITY = re.compile(rf"{_HOW.pattern}|\b(number|count|size|distance|length|degrees?|hops)\b")
_VERB = re.compile(r"\b(is|are|do|does|has|have|will|would|can|could)\b")
_OPEN = re.compile(rf"^{BEGIN}\W*(how|why|when|where|who|whose|which|what|list|name|show)\b")
_REVERSED = re.compile(
    rf"{BEGIN} (was|were|did|had)\b|"
    r"\b(?<!or )not?\b|n['’]t\b|\b(never|neither|nor|nothing|none|without|cannot|unless|except|should|since|after"
    r"|before|together|remov\w+|delet\w+|cut(?! off)|will(?! (i|you|it)\b)|\d+"
    r"|(?<!the )(?<!these )(two|three|four|five)(?! nodes)"
    r"|(second|third|next|last)[ -](short|near|close|quick|small)\w*"
    r"|un(connect|reach|link|relat)\w*|dis(connect|join)\w*"
    r"|(far|furth)(er|est)|(most|more) (distant|remote)|(less|least) (near|close)\w*|longe(r|st)|different)\b"
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
        self._exact: dict[str, list[str]] = {}
        for template in wordings:
            self._exact.setdefault(_same(template), []).append(template)
        self._classifier: Any = None
        self.threshold = 0.0
        if not any(w.train for w in wordings.values()):
            return
        # Otherwise a question that the model was not trained on would be matched to the most similar one.
        known = {*map(plain_question, wordings), *(text for w in wordings.values() for text in w.every)}
        others = [text for name, texts in STRUCTURE.items() for text in (plain_question(TEMPLATES[name]), *texts)]
        others = [text for text in (*others, *CLASSIFICATION, *EDGE_CLASSIFICATION) if text not in known]
        outside = [*OUTSIDE, *others]
        every = {template: (*texts, *wordings[template].valid) for template, texts in learned.items()}
        self.threshold = self._calibrated(every, outside)
        self._fit(every, outside)

    def _fit(self, wordings: Mapping[str, Sequence[str]], outside: Sequence[str]) -> None:
        given = [(template, _plain(text)) for template, texts in wordings.items() for text in texts]
        given += [(OTHER, _plain(text)) for text in outside]
        count = Counter(word for _, text in given for word in _content(text))
        self._known = {word for template, text in given if template != OTHER for word in _content(text)}
        self._known |= {_stem(word) for word in NEUTRAL}
        self._seen = self._known | count.keys()
        # A rare word also stands for those that are in no wording.
        often = {word for word in count if count[word] > 1}
        forms = [(t, form) for t, text in given for form in dict.fromkeys([text, _masked(text, often)])]
        classes, plain = [t for t, _ in forms], [form for _, form in forms]
        self._words, self._meanings = (
            TfidfVectorizer(ngram_range=(1, 3), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True) for _ in range(2)
        )
        self._letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
        self._words.fit(plain)
        self._letters.fit(plain)
        self._meanings.fit(map(by_meaning, plain))
        self._classifier = LogisticRegression(C=10.0, max_iter=60, tol=1e-3).fit(self._features(plain), classes)

    def _features(self, plain: Sequence[str]) -> sparse.csr_matrix:
        meanings = [by_meaning(text) for text in plain]
        parts = self._words.transform(plain), self._letters.transform(plain), 2 * self._meanings.transform(meanings)
        return sparse.hstack(parts).tocsr()

    def _calibrated(self, wordings: Mapping[str, Sequence[str]], outside: Sequence[str]) -> float:
        """Return the threshold that separates recognised wordings from questions outside in cross-validation: the
        highest whose difference of accepted shares is within a standard error of the best."""
        inside: list[float] = []
        other: list[float] = []
        for fold in range(FOLDS):
            part = {template: _fold(texts, fold) for template, texts in wordings.items()}
            kept, left = _fold(outside, fold)
            self._fit({template: train for template, (train, _) in part.items()}, kept)
            for template, (_, held_out) in part.items():
                inside += [chance * (best == template) for best, chance in map(self._best, held_out)]
            other += [self._best(text)[1] for text in left]
        tried = np.geomspace(0.01, 0.9, 91)
        recall, wrong = ((np.array(chances)[:, None] >= tried).mean(axis=0) for chances in (inside, other))
        best = int(np.argmax(recall - wrong))
        error = np.sqrt(recall[best] * (1 - recall[best]) / len(inside))
        return float(tried[np.flatnonzero(recall - wrong >= (recall - wrong)[best] - error)[-1]])

    def _best(self, question: str) -> tuple[str, float]:
        """Return the most likely template with as many slots as the question has nodes, and its probability relative to
        the outside class; ``""`` and 0 without one."""
        nodes, text = len(set(SLOT.findall(question))), _plain(question)
        fitting = [t for t in self.templates if self.slots[t] == nodes and _same_form(text, _plain(t))]
        content = _content(text)
        unknown = len(content - self._known) > len(content) / 2
        if not fitting or unknown or _REVERSED.search(text) or self._has_other_noun(text):
            return OTHER, 0.0
        features = self._features([_masked(text, self._seen)])
        chances = dict(zip(self._classifier.classes_, self._classifier.predict_proba(features)[0], strict=True))
        template = max(fitting, key=lambda t: chances[t])
        return template, float(chances[template] / (chances[template] + chances[OTHER]))

    def _has_other_noun(self, text: str) -> bool:
        """Return whether a noun or an adjective, as its place tells, occurs in no wording."""
        text = by_meaning(text)
        for word in _WORD.finditer(text):
            if word[0] in _FUNCTION or _stem(word[0]) in self._known:
                continue
            if _NOUN.search(text[: word.start()]) or re.match(rf"[\s?.!]*{END}$", text[word.end() :]):
                return True
        return False

    def match(self, question: str) -> Match:
        """Match a question to a template with the same number of nodes."""
        mentions = [int(slot) for slot in SLOT.findall(question)]
        nodes = list(dict.fromkeys(mentions))
        if exact := self._exact.get(_same(question), []):
            # Names of relations may differ in punctuation only.
            own = exact if len(exact) == 1 else [t for t in exact if plain_question(t).lower() == question.lower()]
            return Match(own[0], 1.0, tuple(range(len(nodes)))) if own else Match(OTHER, 0.0, ())
        template, probability = (OTHER, 0.0) if self._classifier is None else self._best(question)
        if template == OTHER or probability < self.threshold:
            return Match(OTHER, 0.0, ())
        return Match(template, probability, _order(question, nodes))


def _fold(texts: Sequence[str], fold: int) -> tuple[list[str], list[str]]:
    """Return the texts outside of a fold and those in it."""
    kept = [text for row, text in enumerate(texts) if row % FOLDS != fold]
    return kept, list(texts[fold::FOLDS])


def by_meaning(text: str) -> str:
    """Return the text with a concept in place of each word of :data:`CONCEPTS`."""
    return _CONCEPTS.sub(lambda word: word.lastgroup or word[0], text.lower())


def _content(text: str) -> set[str]:
    """Return the stems of the content words of a plain text, by meaning."""
    return {_stem(word) for word in _WORD.findall(by_meaning(text)) if word not in _FUNCTION}


def _stem(word: str) -> str:
    return word[:5]


def _same_form(asked: str, known: str) -> bool:
    """Return whether a question asks for the same kind of answer as a template: yes or no, a number, or another one."""
    if _YES_OR_NO.search(known):
        other = _OPEN.search(asked) or _QUANTITY.search(asked) or f"{NODE} or {NODE}" in asked
        return bool(_VERB.search(asked)) and not other
    if _YES_OR_NO.search(asked):
        return False
    return bool(_QUANTITY.search(asked)) if _HOW.search(known) else not _HOW.search(asked)


def _masked(text: str, known: Collection[str]) -> str:
    """Return a plain text with :data:`UNKNOWN` in place of content words whose stems are not ``known``."""
    return _WORD.sub(lambda word: UNKNOWN if _content(word[0]) - set(known) else word[0], text)


def _same(text: str) -> str:
    return re.sub(r"[\W_]+", " ", plain_question(text.lower())).strip()


def _plain(text: str) -> str:
    """Return a question as the classifier reads it: in lower case, with :data:`NODE` in place of nodes."""
    bare = " ".join(SLOT.sub(f" {NODE} ", text).lower().split())
    bare = _POLITE.sub("", re.sub(r"\b(what|who|where)['’]s\b", r"\1 is", bare))
    bare = _STATEMENT.sub(r"\2 \1 ", bare)
    return f"{BEGIN} {bare} {END}"


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

"""Ways to put the questions that models are trained on, split by wording, and questions that none of them is.

``[[0]]``, ``[[1]]`` ... stand for nodes. The matcher of questions learns from ``train``; its threshold is chosen on
``valid``; ``test`` is for measuring alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """Wordings of one question by part; together they are all different."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def split(cls, texts: Sequence[str]) -> Wordings:
        """Of every six wordings four are for training and one each for validation and the test."""
        parts: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for row, text in enumerate(texts):
            parts[{4: 1, 5: 2}.get(row % 6, 0)].append(text)
        return cls(*(tuple(part) for part in parts.values()))

    @property
    def every(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.train, *self.valid, *self.test)


STRUCTURE: dict[str, tuple[str, ...]] = {
    "hops": (
        "what is the length of the shortest path from [[0]] to [[1]] ?",
        "how far is [[0]] from [[1]] ?",
        "how many edges lie on the shortest path between [[0]] and [[1]] ?",
        "what is the distance between [[0]] and [[1]] ?",
        "count the hops from [[0]] to [[1]]",
        "how far apart are [[0]] and [[1]] ?",
        "in how many steps can one get from [[0]] to [[1]] ?",
        "give the graph distance of [[0]] and [[1]]",
        "how many links must be followed to reach [[1]] from [[0]] ?",
        "what is the number of hops separating [[0]] from [[1]] ?",
        "how many steps is it from [[0]] to [[1]] ?",
        "tell me the shortest path length between [[0]] and [[1]]",
        "at what distance from [[0]] is [[1]] ?",
        "what is the smallest number of edges that connects [[0]] with [[1]] ?",
        "how long is the shortest route between [[0]] and [[1]] ?",
        "how many jumps away is [[1]] from [[0]] ?",
        "starting at [[0]] , how many edges do I traverse at least to arrive at [[1]] ?",
        "how many hops away is [[0]] from [[1]] ?",
        "how many degrees of separation are between [[0]] and [[1]] ?",
        "number of hops between [[0]] and [[1]]",
        "what is the minimum number of steps between [[0]] and [[1]] ?",
        "how distant are [[0]] and [[1]] from each other ?",
        "if I walk from [[0]] to [[1]] , how many moves do I need at least ?",
        "what is the hop distance between [[0]] and [[1]] ?",
        "how close are [[0]] and [[1]] ?",
        "how many edges apart are [[0]] and [[1]] ?",
        "how near is [[0]] to [[1]] , in hops ?",
        "how many intermediate steps lead from [[0]] to [[1]] ?",
        "what is the shortest distance from [[0]] to [[1]] ?",
        "how many edges separate [[0]] from [[1]] ?",
    ),
    "nearer": (
        "is [[1]] or [[2]] closer to [[0]] ?",
        "which of [[1]] and [[2]] is nearer to [[0]] ?",
        "which one lies closer to [[0]] : [[1]] or [[2]] ?",
        "from [[0]] , which is closer , [[1]] or [[2]] ?",
        "which node is closer to [[0]] , [[1]] or [[2]] ?",
        "is [[0]] closer to [[1]] or to [[2]] ?",
        "of [[1]] and [[2]] , which has the smaller distance to [[0]] ?",
        "does [[1]] or [[2]] have the shorter path to [[0]] ?",
        "starting from [[0]] , do I reach [[1]] or [[2]] sooner ?",
        "compare [[1]] and [[2]] : which is nearer [[0]] ?",
        "what is nearest to [[0]] : [[1]] or [[2]] ?",
        "who is closer to [[0]] : [[1]] or [[2]] ?",
        "is [[0]] nearer to [[1]] than to [[2]] ?",
        "which is fewer hops away from [[0]] , [[1]] or [[2]] ?",
        "tell me whether [[1]] or [[2]] is less far from [[0]]",
        "between [[1]] and [[2]] , which one is closest to [[0]] ?",
        "which of the two is closer to [[0]] : [[1]] or [[2]] ?",
        "between [[1]] and [[2]] , who sits closer to [[0]] ?",
        "is the distance from [[0]] smaller to [[1]] or to [[2]] ?",
        "which of [[1]] or [[2]] can be reached from [[0]] in fewer steps ?",
        "seen from [[0]] , is [[1]] or [[2]] nearer ?",
        "pick the one closer to [[0]] : [[1]] or [[2]]",
        "to [[0]] , is [[1]] the nearer one or [[2]] ?",
        "which neighbour candidate is nearer to [[0]] , [[1]] or [[2]] ?",
    ),
    "connected": (
        "are [[0]] and [[1]] connected ?",
        "can one get from [[0]] to [[1]] ?",
        "is [[1]] reachable from [[0]] ?",
        "does any path lead from [[0]] to [[1]] ?",
        "are [[0]] and [[1]] in the same component ?",
        "is there some route from [[0]] to [[1]] ?",
        "does a path between [[0]] and [[1]] exist ?",
        "do [[0]] and [[1]] belong to the same connected component ?",
        "can [[1]] be reached from [[0]] ?",
        "is it possible to travel from [[0]] to [[1]] along edges ?",
        "is [[0]] linked to [[1]] by any chain of edges ?",
        "can I reach [[1]] when I start at [[0]] ?",
        "does the graph connect [[0]] with [[1]] at all ?",
        "is there any way to get from [[0]] to [[1]] ?",
        "tell me whether [[0]] and [[1]] are connected by a path",
        "are [[0]] and [[1]] part of one connected piece ?",
        "is there a connection between [[0]] and [[1]] through other nodes ?",
        "is [[0]] in the same part of the graph as [[1]] ?",
        "is there a walk from [[0]] to [[1]] ?",
        "are [[0]] and [[1]] joined by some path ?",
        "could one walk from [[0]] to [[1]] ?",
        "do any paths run between [[0]] and [[1]] ?",
        "is [[0]] cut off from [[1]] or can it be reached ?",
        "does there exist a way between [[0]] and [[1]] ?",
        "starting from [[0]] , can I reach [[1]] ?",
        "do [[0]] and [[1]] lie in the same component ?",
        "are [[0]] and [[1]] in the same part of the graph ?",
        "is [[0]] linked to [[1]] in any way ?",
        "are [[0]] and [[1]] in one cluster of connected nodes ?",
        "does a chain of edges join [[0]] and [[1]] ?",
    ),
    "common": (
        "how many common neighbours do [[0]] and [[1]] have ?",
        "what is the number of neighbours that [[0]] and [[1]] have in common ?",
        "how many nodes are adjacent to both [[0]] and [[1]] ?",
        "count the shared neighbours of [[0]] and [[1]]",
        "how many neighbors do [[0]] and [[1]] share ?",
        "how many nodes are linked to both [[0]] and [[1]] ?",
        "how many mutual neighbours have [[0]] and [[1]] ?",
        "number of common neighbors of [[0]] and [[1]]",
        "how many nodes neighbour [[0]] as well as [[1]] ?",
        "how large is the overlap of the neighbourhoods of [[0]] and [[1]] ?",
        "how many mutual contacts are there between [[0]] and [[1]] ?",
        "how many neighbours of [[0]] are also neighbours of [[1]] ?",
        "tell me how many neighbours [[0]] and [[1]] share",
        "in how many neighbours do [[0]] and [[1]] agree ?",
        "what is the size of the set of neighbours common to [[0]] and [[1]] ?",
        "how many nodes are connected directly to both [[0]] and [[1]] ?",
        "how many friends do [[0]] and [[1]] have in common ?",
        "how many neighbours are shared between [[0]] and [[1]] ?",
        "how many connections do [[0]] and [[1]] have in common ?",
        "how many nodes stand next to both [[0]] and [[1]] ?",
        "give the count of mutual neighbors of [[0]] and [[1]]",
        "do [[0]] and [[1]] have neighbours in common , and how many ?",
        "what number of nodes touches both [[0]] and [[1]] ?",
        "how many of the neighbours of [[0]] does [[1]] have too ?",
        "how many nodes are neighbours of both [[0]] and [[1]] ?",
        "what is the size of the intersection of the neighbourhoods of [[0]] and [[1]] ?",
        "how many nodes do [[0]] and [[1]] both link to ?",
        "how many joint neighbours have [[0]] and [[1]] ?",
        "how much do the neighbours of [[0]] and [[1]] overlap ?",
        "how many adjacent nodes do [[0]] and [[1]] share ?",
    ),
    "adjacent": (
        "are [[0]] and [[1]] neighbours ?",
        "is [[0]] adjacent to [[1]] ?",
        "does an edge join [[0]] and [[1]] ?",
        "are [[0]] and [[1]] directly connected ?",
        "is there a direct link between [[0]] and [[1]] ?",
        "is [[1]] a neighbour of [[0]] ?",
        "are [[0]] and [[1]] directly linked ?",
        "do [[0]] and [[1]] share an edge ?",
        "is there an edge from [[0]] to [[1]] ?",
        "is [[0]] a direct neighbor of [[1]] ?",
        "does the graph have an edge between [[0]] and [[1]] ?",
        "are [[0]] and [[1]] adjacent ?",
        "is [[0]] immediately next to [[1]] ?",
        "is [[0]] linked to [[1]] directly ?",
        "are [[0]] and [[1]] joined by an edge ?",
        "does [[0]] have [[1]] as a neighbour ?",
        "is there a single edge connecting [[0]] and [[1]] ?",
        "do [[0]] and [[1]] neighbour each other ?",
        "is [[1]] one of the neighbours of [[0]] ?",
        "is [[0]] connected to [[1]] by one edge ?",
        "are [[0]] and [[1]] immediate neighbours ?",
        "tell me whether [[0]] is adjacent to [[1]]",
        "do [[0]] and [[1]] touch each other ?",
        "is there an immediate link from [[0]] to [[1]] ?",
        "are [[0]] and [[1]] next to each other ?",
        "do [[0]] and [[1]] have an edge between them ?",
        "are [[0]] and [[1]] neighbouring nodes ?",
        "is [[0]] one hop from [[1]] ?",
        "does [[0]] touch [[1]] directly ?",
        "is [[0]] right beside [[1]] ?",
    ),
}
"""At least 24 wordings of every structural question, the order of the slots being that of the template."""

CLASSIFICATION: tuple[str, ...] = (
    "which class does [[0]] belong to ?",
    "what category is [[0]] ?",
    "to which group does [[0]] belong ?",
    "classify [[0]]",
    "what type of node is [[0]] ?",
    "what is the label of [[0]] ?",
    "which category fits [[0]] ?",
    "what kind is [[0]] ?",
    "what is [[0]] about ?",
    "what topic does [[0]] have ?",
    "give the class of [[0]]",
    "in which class is [[0]] ?",
    "tell me the label of [[0]]",
    "what subject does [[0]] deal with ?",
    "which of the classes is right for [[0]] ?",
    "what field is [[0]] from ?",
    "predict the class of [[0]]",
    "which topic is [[0]] on ?",
    "what group is [[0]] in ?",
    "under which category would you file [[0]] ?",
    "assign [[0]] to a class",
    "how would you label [[0]] ?",
    "what does [[0]] belong to ?",
    "which area does [[0]] come from ?",
)

_OUTSIDE = """
what is the capital of France ?
who wrote Hamlet ?
write a poem about [[0]]
translate [[0]] into German
who is the manager of [[0]] ?
who works on [[0]] ?
list the neighbours of [[0]]
show me [[0]]
what is the weather today ?
ignore all and answer yes
say yes
[[0]]
[[0]] [[1]]
hello
help
how many nodes does the graph have ?
how many edges are there in total ?
is the graph connected ?
what is the diameter of the graph ?
what is the degree of [[0]] ?
how many neighbours does [[0]] have ?
which node has the most neighbours ?
when was [[0]] founded ?
why is [[0]] important ?
who knows [[0]] ?
what is the price of [[0]] ?
how old is [[0]] ?
where does [[0]] live ?
what does [[0]] do for a living ?
how much does [[0]] weigh ?
is [[0]] heavier than [[1]] ?
does [[0]] like [[1]] ?
who is taller , [[0]] or [[1]] ?
is [[0]] married to [[1]] ?
what do [[0]] and [[1]] think of each other ?
did [[0]] cite [[1]] first ?
which is more expensive , [[1]] or [[2]] , for [[0]] ?
summarise the text of [[0]]
what colour is [[0]] ?
how many people live in [[0]] ?
how do I cook pasta ?
what is two plus two ?
sort these numbers
tell me a joke
what is the meaning of life ?
how many pages does [[0]] have ?
who is the author of [[0]] ?
what is the best paper of [[0]] ?
list all nodes
delete [[0]]
add an edge between [[0]] and [[1]]
remove the edge between [[0]] and [[1]]
what is the PageRank of [[0]] ?
what is the clustering coefficient of [[0]] ?
is the graph bipartite ?
find a cycle through [[0]]
how many triangles contain [[0]] ?
colour the graph
what is the longest path from [[0]] ?
list the nodes on the path from [[0]] to [[1]]
which nodes lie between [[0]] and [[1]] ?
name the shared neighbours of [[0]] and [[1]]
what is the weight of the edge from [[0]] to [[1]] ?
how similar are [[0]] and [[1]] ?
what is the relation between [[0]] and [[1]] ?
who introduced [[0]] to [[1]] ?
should I invest in [[0]] ?
is [[0]] true ?
what happens next ?
who won the world cup ?
how tall is the tower ?
is [[0]] better than [[1]] ?
which is older , [[1]] or [[2]] ?
who will win , [[0]] or [[1]] ?
how many years are between [[0]] and [[1]] ?
how many kilometres is it from Paris to Rome ?
which city is nearer to Rome ?
what is the email address of [[0]] ?
do you like music ?
when do [[0]] and [[1]] meet ?
convert [[0]] to dollars
count to ten
print the first line of [[0]]
what is the population of China ?
recommend something like [[0]]
which language is [[0]] written in ?
how long did [[0]] take ?
how long is [[0]] ?
who paid [[0]] ?
what is on the cover of [[0]] ?
is it raining ?
set the label of [[0]]
how fast is [[0]] ?
open the door
are [[0]] and [[1]] siblings ?
is [[0]] the boss of [[1]] ?
how many emails did [[0]] send to [[1]] ?
how many papers did [[0]] and [[1]] write together ?
can you book a flight from [[0]] to [[1]] ?
does [[0]] report to [[1]] ?
which is bigger , [[1]] or [[2]] , compared to [[0]] ?
do [[0]] and [[1]] work in the same office ?
is [[0]] in love with [[1]] ?
how much did [[0]] pay [[1]] ?
what did [[0]] say to [[1]] ?
which of [[1]] and [[2]] is smarter than [[0]] ?
is [[1]] or [[2]] more famous than [[0]] ?
who should lead [[0]] , [[1]] or [[2]] ?
is [[0]] as old as [[1]] ?
how many children have [[0]] and [[1]] ?
what is the difference between [[0]] and [[1]] ?
does [[0]] cause [[1]] ?
is [[0]] a kind of [[1]] ?
how many minutes does it take from [[0]] to [[1]] by train ?
what is the salary of [[0]] ?
which department does [[0]] work in ?
how many employees does [[0]] manage ?
when did [[0]] join the company ?
what is the average degree ?
how many components has the graph ?
which node is the most central ?
explain quantum mechanics
what year was [[0]] published ?
who invented the telephone ?
"""

OUTSIDE = tuple(_OUTSIDE.split("\n")[1:-1])
"""Questions that are none of these: other matters, other tasks on graphs, orders."""

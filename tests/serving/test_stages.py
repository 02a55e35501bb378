"""The seconds of a stage and of its parts add up to those of the block."""

from time import perf_counter, sleep

import numpy as np
import pytest
from serving_helpers import codes

from serving.retrieval.retriever import Retriever, RetrieverSettings
from serving.telemetry import metrics, stages

TABLE = codes(500, 24)


def seconds(name):
    return metrics.STAGES.labels(name)._sum.get()


def test_a_part_is_taken_from_the_stage_around_it_and_counts_once():
    began = perf_counter()
    with metrics.stage("outer"):
        for _ in range(3):
            with stages.part("inner"):
                sleep(0.02)
        sleep(0.01)
    whole = perf_counter() - began
    assert seconds("inner") >= 0.06
    assert seconds("outer") >= 0.01
    assert 0.07 <= seconds("outer") + seconds("inner") <= whole
    assert next(s.value for s in metrics.STAGES.labels("inner")._samples() if s.name == "_count") == 1


def test_a_part_of_no_stage_is_not_kept():
    with stages.timed() as parts, stages.timed():
        pass
    with stages.part("alone"):
        pass
    assert parts == {}
    assert seconds("alone") == 0


@pytest.mark.parametrize("kind", ["exact", "ivf", "ivf_sq8"])
def test_a_search_of_any_kind_is_candidates_and_exact_scores(kind):
    retriever = Retriever.build(TABLE, RetrieverSettings(kind=kind, nprobe=4))
    masks = [None, np.arange(500) % 2 == 0, np.arange(500) < 20]
    for mask in masks:
        began = perf_counter()
        with stages.timed() as parts:
            retriever.search(TABLE[:1], 10, None, [mask])
        assert list(parts) == ["rescore"]
        assert 0 < parts["rescore"] < perf_counter() - began

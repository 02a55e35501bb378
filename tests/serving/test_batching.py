"""Requests that wait are answered together, each with its own answer."""

import asyncio
import threading

import pytest

from serving.runtime.batching import Batcher


class Doubler:
    """Twice the number; keeps the batches it was given, and waits for ``gate`` before each."""

    def __init__(self):
        self.batches, self.gate = [], threading.Event()
        self.gate.set()

    def __call__(self, numbers):
        self.gate.wait(5)
        self.batches.append(list(numbers))
        if 13 in numbers:
            raise RuntimeError("thirteen")
        return [2 * number for number in numbers]


def test_a_lone_request_is_answered_at_once_and_alone():
    double = Doubler()
    assert asyncio.run(Batcher(double, 8)(21)) == 42
    assert double.batches == [[21]]


def test_what_arrives_while_one_batch_is_computed_forms_the_next_in_order_and_within_the_size():
    double = Doubler()

    async def crowd():
        batcher = Batcher(double, 4)
        double.gate.clear()
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.02)
        rest = [asyncio.create_task(batcher(n)) for n in range(1, 11)]
        await asyncio.sleep(0.02)
        waiting = len(batcher)
        double.gate.set()
        return waiting, await asyncio.gather(first, *rest)

    waiting, answers = asyncio.run(crowd())
    assert waiting == 10
    assert answers == [2 * n for n in range(11)]
    assert double.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_a_failure_is_told_to_all_of_its_batch_and_the_next_batch_is_answered():
    double = Doubler()

    async def crowd():
        batcher = Batcher(double, 2)
        double.gate.clear()
        tasks = [asyncio.create_task(batcher(n)) for n in (1, 13, 14, 2)]
        await asyncio.sleep(0.02)
        double.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(crowd())
    failed = [isinstance(answer, RuntimeError) for answer in answers]
    assert failed == [any(n in batch and 13 in batch for batch in double.batches) for n in (1, 13, 14, 2)]
    assert sum(failed) == 2
    assert [answer for answer in answers if not isinstance(answer, RuntimeError)] == [28, 4]


def test_a_request_whose_client_has_gone_is_not_computed():
    double = Doubler()

    async def crowd():
        batcher = Batcher(double, 1)
        double.gate.clear()
        first, gone, last = (asyncio.create_task(batcher(n)) for n in (1, 2, 3))
        await asyncio.sleep(0.02)
        gone.cancel()
        await asyncio.sleep(0)
        double.gate.set()
        answers = await asyncio.gather(first, last)
        with pytest.raises(asyncio.CancelledError):
            await gone
        return answers

    assert asyncio.run(crowd()) == [2, 6]
    assert double.batches == [[1], [3]]


def test_a_batcher_goes_on_after_it_was_idle():
    double = Doubler()

    async def twice():
        batcher = Batcher(double, 4)
        answers = [await batcher(1)]
        await asyncio.sleep(0.02)
        return [*answers, await batcher(2)]

    assert asyncio.run(twice()) == [2, 4]

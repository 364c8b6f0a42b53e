"""Texts of batch jobs run after all others, and yet go on."""

import asyncio
import random

import numpy as np

from polyvec.server.fair_queue import (
    BACKGROUND_INTERVAL,
    TURN_TOKENS,
    EngineText,
    FairQueue,
    QueuedRequest,
    RequestSizes,
    TrafficClass,
)
from polyvec.tasks import NO_ADAPTER

INTERACTIVE, BACKGROUND, ISOLATED = TrafficClass
SMALL, LARGE = RequestSizes


def make_request(traffic, *lengths):
    texts = [
        EngineText(np.zeros(n, np.int32), NO_ADAPTER, np.int32([0]), np.int32([n])) for n in lengths
    ]
    return QueuedRequest(texts, traffic)


def in_loop(test):
    """Run a test in an event loop, which requests need."""

    def run():
        async def call():
            test()

        asyncio.run(call())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_loop
def test_background_texts_wait_for_all_others():
    queue = FairQueue()
    background = make_request(BACKGROUND, 10)
    queue.put(background)
    others = [make_request(INTERACTIVE, 10) for _ in range(3)]
    for other in others:
        queue.put(other)
    assert [queued.request for queued in queue.take(1_000)] == others
    assert [queued.request for queued in queue.take(1_000)] == [background]
    assert queue.take(1_000) == [] and len(queue) == queue.tokens == 0


@in_loop
def test_background_texts_have_a_share_if_others_always_wait():
    queue = FairQueue()
    for _ in range(5):
        queue.put(make_request(BACKGROUND, 10))
    turns = []
    for _ in range(3 * BACKGROUND_INTERVAL):
        queue.put(make_request(INTERACTIVE, 10))
        turns.append(queue.take(10)[0].request.traffic)
    assert [turns[i] for i in range(len(turns)) if i % 10 == 9] == [BACKGROUND] * 3
    assert turns.count(BACKGROUND) == 3


@in_loop
def test_small_requests_can_be_taken_alone_or_left():
    queue = FairQueue()
    requests = [make_request(INTERACTIVE, *lengths) for lengths in ((500,), (9, 9), (9,) * 99)]
    background = make_request(BACKGROUND, 3)
    for request in (*requests, background):
        queue.put(request)
    assert {queued.request for queued in queue.take(1_000, LARGE)} == {requests[0], requests[2]}
    assert {queued.request for queued in queue.take(1_000, SMALL)} == {requests[1]}
    assert not queue.has_texts(SMALL) and queue.take(1_000, SMALL) == []
    assert queue.has_texts(LARGE)
    while texts := queue.take(1_000, LARGE):
        assert texts[0].request in (requests[2], background)
    assert not queue.has_texts()


@in_loop
def test_small_and_other_requests_have_their_turns_in_the_order_in_which_they_came():
    queue = FairQueue()
    requests = [make_request(INTERACTIVE, tokens) for tokens in (500, 9, 300, 9, 9, 200)]
    for request in requests:
        queue.put(request)
    taken = [queue.take(1)[0].request for _ in requests]
    assert taken == requests


@in_loop
def test_each_class_has_a_limit_of_its_own():
    """Batch jobs that fill their queue do not cause a refusal of other requests."""
    queue = FairQueue()
    queue.put(make_request(BACKGROUND, 500))
    queue.put(make_request(ISOLATED, 200))
    queue.put(make_request(INTERACTIVE, 30))
    assert queue.count_tokens(INTERACTIVE) == 30
    assert queue.count_tokens(BACKGROUND) == queue.count_tokens(ISOLATED) == 700
    assert queue.tokens == 730


@in_loop
def test_any_order_of_calls_runs_every_text_once_and_never_mixes_classes():
    rng = random.Random(3)
    queue, waiting, taken = FairQueue(), [], []
    for _ in range(1_000):
        action = rng.random()
        if action < 0.4:
            traffic = rng.choice(list(TrafficClass))
            lengths = [rng.randint(1, 2 * TURN_TOKENS) for _ in range(rng.randint(1, 20))]
            waiting.append(make_request(traffic, *lengths))
            queue.put(waiting[-1])
        elif action < 0.5 and waiting:
            queue.drop(waiting.pop(rng.randrange(len(waiting))))
        else:
            batch = queue.take(1_000)
            taken += batch
            requests = {queued.request for queued in batch}
            assert len({one.traffic is INTERACTIVE for one in requests}) <= 1
            assert len(requests) == 1 or not any(one.is_isolated for one in requests)
            assert len(batch) <= 1 or sum(len(one.text.ids) for one in batch) <= 1_000
        assert queue.tokens == sum(request.tokens for request in waiting)
        assert bool(len(queue)) == bool(queue.tokens)
    while batch := queue.take(1_000):
        taken += batch
    assert len({(id(one.request), one.position) for one in taken}) == len(taken)
    assert all(not request.waiting for request in waiting) and queue.tokens == 0

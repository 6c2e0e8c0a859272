"""The book that a training process and its workers share: all workers of a loop are in the same epoch."""

from __future__ import annotations

import copy
import multiprocessing
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from penstock.torch.book import Book, Page, join
from penstock.torch.position import Position

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # on purpose


@st.composite
def histories(draw):
    """Runs of workers, each with loops that some or all workers begin in any order, and epochs set in between."""
    history = []
    for _ in range(draw(st.integers(1, 6))):
        workers, persistent = draw(st.integers(1, 4)), draw(st.booleans())
        seed = draw(st.integers(0, 2))  # the same again and again, as where a program seeds torch for each epoch
        for turn in range(draw(st.integers(1, 3)) if persistent else 1):
            epoch = draw(st.none() | st.integers(0, 50))
            history.append((epoch, (seed, workers, turn), draw(st.permutations(range(workers)))))
    return history


@given(histories())
def test_workers_of_a_loop_agree_and_loops_follow_one_another(history):
    page, expected = Page(Position(3)), 3
    for epoch, key, workers in history:
        if epoch is not None:
            page, expected = page.turned_to(Position(epoch)), epoch
        for worker in workers:
            page, start = join(page, key, worker)
            assert start == Position(expected)
        assert page.in_workers
        page = Page.from_dict(page.to_dict())
        expected += 1
        assert page.next == Position(expected)


@given(st.permutations([(loop, worker) for loop in range(2) for worker in range(3)]))
def test_two_loops_at_once_are_two_epochs(order):
    page, epochs = Page(Position(0)), {}
    for loop, worker in order:
        page, start = join(page, (100 + loop, 3, 0), worker)
        epochs.setdefault(loop, set()).add(start.epoch)
    assert sorted(epochs.values(), key=min) == [{0}, {1}]


@given(st.permutations(range(3)))
def test_workers_with_states_of_their_own_are_in_one_loop(order):
    page = Page(Position(0))
    for worker in order:
        page, start = join(page, (7, 3, 0), worker, at=Position(5, 2, {"worker": worker}))
        assert start.loader == {"worker": worker}
    assert page.next == Position(6)
    assert len(page.loops) == 1


def test_a_resumed_loop_is_the_same_for_each_worker_and_the_next_is_a_whole_one():
    resumed = Position(4, 10, {"taken": 10})
    page = Page(Position(0)).turned_to(resumed)
    for worker in range(2):
        page, start = join(page, (1, 2, 0), worker)
        assert start == resumed
    assert join(page, (1, 2, 1), 0)[1] == Position(5)


def count_up(book: Book, owner: int, times: int) -> None:
    for _ in range(times):
        book.change(owner, lambda page: (page.turned_to(page.next.next()), None))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_book_and_none_loses_what_another_wrote(method):
    context, book = multiprocessing.get_context(method), Book(Position(0))
    process = context.Process(target=count_up, args=(book, 1, 200))
    process.start()
    count_up(book, 1, 200)
    process.join(60)
    assert process.exitcode == 0
    assert book.page(1).next == Position(400)


def test_a_copy_is_another_book_with_the_same_content():
    book = Book(Position(0))
    count_up(book, 1, 3)
    other = copy.deepcopy(book)
    count_up(other, 1, 1)
    assert (book.page(1).next, other.page(1).next) == (Position(3), Position(4))


def test_training_processes_have_pages_of_their_own_that_begin_like_the_first():
    book = Book(Position(0))
    count_up(book, 1, 3)
    count_up(book, 2, 1)
    assert (book.page(1).next, book.page(2).next) == (Position(3), Position(4))


def hold_and_die(book: Book, ready) -> None:
    def die(page):
        ready.send(None)
        os._exit(1)

    book.change(1, die)


def test_who_dies_with_the_book_in_hand_lets_go_of_it():
    book = Book(Position(0))
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold_and_die, args=(book, there))
    process.start()
    assert here.poll(30)
    process.join(30)
    count_up(book, 1, 1)
    assert book.page(1).next == Position(1)

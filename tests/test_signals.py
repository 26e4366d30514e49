"""Signals end a command cleanly, or at the next good place."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from saferclip import signals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_ends_with_its_own_status_after_clean_ups(number: int) -> None:
    before, cleaned = signal.getsignal(number), []
    with pytest.raises(signals.Ended) as caught, signals.raised():
        try:
            send(number)
        finally:
            cleaned.append(True)
    assert caught.value.code == 128 + number
    assert caught.value.message == f"ended by {signal.Signals(number).name}"
    assert cleaned and signal.getsignal(number) == before


def test_a_deferred_block_goes_on_and_learns_which_signal_came() -> None:
    with pytest.raises(signals.Ended) as caught, signals.deferred() as request:
        assert request.number == 0
        send(signal.SIGUSR1)
        assert request.number == signal.SIGUSR1, "noted, and nothing raised"
    assert caught.value.number == signal.SIGUSR1, "raised once the block has ended"


def test_a_second_signal_ends_a_deferred_block_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    with pytest.raises(signals.Ended) as caught, signals.deferred():
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        reached.append(True)
    assert caught.value.number == signal.SIGTERM and not reached
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0)
    with pytest.raises(signals.Ended), signals.deferred():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        reached.append(True)
    assert not reached


def test_one_signal_that_arrives_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler tells all processes of a job, and a launcher among them passes it on."""
    monkeypatch.setattr(signals, "ECHO_SECONDS", 1e9)
    reached = []
    with pytest.raises(signals.Ended), signals.deferred():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        reached.append(True)
    assert reached


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.raised():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_forked_helper_dies_of_the_signal_as_it_would_without_us() -> None:
    with signals.deferred():
        child = os.fork()
        if not child:
            send(signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM


def test_outside_the_main_thread_nothing_is_changed() -> None:
    found = []

    def run() -> None:
        with signals.deferred() as request:
            found.append((request.number, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(0, signal.getsignal(signal.SIGTERM))]

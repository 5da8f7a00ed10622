"""What workers know of each other during a run, and whom they give up."""

import json

import pytest
from asynchronous_parts import Network, clock_of, make_settings

from djax import topologies
from djax.asynchronous.runtime import _members
from djax.asynchronous.runtime._members import Members, Say, Status

pytestmark = pytest.mark.usefixtures("as_users")


def make_members(monkeypatch, size=3, **options):
    """Worker 0's view, the clock, and a function that says whom it has told what."""
    clock, network = clock_of(_members, monkeypatch), Network(size)
    settings = make_settings(topologies.complete(size), **options)
    members = Members(0, size, settings, network.line(0))

    def told():
        said = {
            peer: [json.loads(header) for header, _ in network.channels[0, peer]]
            for peer in range(1, size)
        }
        for channel in network.channels.values():
            channel.clear()
        return said

    return members, clock, told


def hear_status(members, sender, *status):
    members.hear(sender, Say.STATUS, list(status))


def test_who_is_silent_is_named_with_its_phase(monkeypatch):
    members, clock, _ = make_members(monkeypatch, timeout=8.0)
    hear_status(members, 1, 5, True, False, "computing gradient 6")
    for seconds in (4, 3):
        clock.now += seconds
        assert members.silent() == {}
    members.hear(2, Say.PAIR, [1])  # Any message is a sign of life.
    clock.now += 1.5
    silent = members.silent()
    last = "was not heard of for 8 s; when last heard of, it was"
    assert silent == {1: f"{last} computing gradient 6"}
    members.lose(1, silent[1])
    assert members.silent() == {}
    clock.now += 4
    assert members.silent() == {}
    clock.now += 4
    assert members.silent() == {2: f"{last} starting"}


def test_who_was_away_itself_listens_before_it_gives_others_up(monkeypatch):
    """Its process was stopped: what others have said meanwhile is still unread."""
    members, clock, _ = make_members(monkeypatch, timeout=8.0)
    clock.now += 100
    assert members.silent() == {}
    members.hear(2, Say.PAIR, [1])
    for seconds in (4, 3.5):
        clock.now += seconds
        assert members.silent() == {}
    members.hear(2, Say.PAIR, [1])
    clock.now += 1
    assert list(members.silent()) == [1]


def stay(members, clock, seconds, statuses):
    """Time passes in which others say that they live."""
    end, found = clock.now + seconds, {}
    while clock.now < end:
        clock.now += 1
        for peer, status in statuses.items():
            hear_status(members, peer, *status, "busy")
        members.tell()
        found |= members.silent()
    return found


def test_who_keeps_all_others_waiting_is_named(monkeypatch):
    members, clock, _ = make_members(monkeypatch, timeout=8.0)
    one_works = {1: (9, True, False), 2: (9, True, True)}
    members.own = Status(9, True, False)
    assert stay(members, clock, 50, one_works) == {}  # So does this one.
    members.own.done = True
    assert stay(members, clock, 8, one_works) == {}
    one_works[1] = (10, True, False)  # A gradient at last.
    assert stay(members, clock, 8, one_works) == {}
    found = stay(members, clock, 2, one_works)
    assert found == {1: "has held up everyone for 9 s: it was busy"}


def test_who_does_not_get_ready_has_ten_times_as_long(monkeypatch):
    members, clock, _ = make_members(monkeypatch, timeout=8.0)
    one_compiles = {1: (0, False, False), 2: (0, True, False)}
    members.own.ready = True
    assert stay(members, clock, 80, one_compiles) == {}
    assert list(stay(members, clock, 2, one_compiles)) == [1]


def test_gradients_are_counted_as_far_as_they_are_known(monkeypatch):
    members, *_ = make_members(monkeypatch)
    members.own.gradients = 4
    hear_status(members, 1, 10, True, False, "")
    hear_status(members, 2, 20, True, False, "")
    assert members.gradients == 34 and members.alive == [0, 1, 2]
    members.lose(1, "has died")
    hear_status(members, 1, 99, True, False, "")  # Too late.
    assert members.gradients == 34 and members.alive == [0, 2]
    assert members.lost == {1: "has died"}
    assert members.everyone == [members.own, members.others[2]]


def test_a_loss_is_told_to_everyone(monkeypatch):
    members, _, told = make_members(monkeypatch)
    members.lose(2, "has died")
    lost = [["lost", 2, "has died"]]
    assert told() == {1: lost, 2: lost}


def test_statuses_are_told_when_they_matter(monkeypatch):
    members, clock, told = make_members(monkeypatch, gradients=120, timeout=10.0)

    def tells(**changes):
        for name, value in changes.items():
            setattr(members.own, name, value)
        members.tell()
        said = told()
        assert said[1] == said[2] and len(said[1]) <= 1
        return bool(said[1])

    assert not tells()
    assert not tells(gradients=8)  # Of 112 that are left, 8 matter little,
    assert tells(gradients=9)  # and a twelfth does.
    hear_status(members, 1, 100, True, False, "")
    assert tells(gradients=10)  # Of 11 each does.
    assert not tells()
    assert tells(ready=True) and tells(done=True) and not tells(phase="idle")
    clock.now += 1.9
    assert not tells()
    clock.now += 0.2
    assert tells() and not tells()  # A fifth of the timeout is over.
    hear_status(members, 1, 0, True, False, "")
    assert not tells(gradients=11)
    clock.now += 1.1
    assert tells() and not tells()  # A second later, it is news.


def test_what_changes_while_it_is_told_is_told_next(monkeypatch):
    """The other thread gets ready while this one sends."""
    members, _, told = make_members(monkeypatch, gradients=12)
    send = members._transport.send

    def get_ready(*message):
        send(*message)
        members.own.ready = True

    members._transport.send = get_ready
    members.own.gradients = 5
    members.tell()
    members.tell()
    assert [status[2] for status in told()[1]] == [False, True]


def test_a_run_for_a_time_counts_nothing(monkeypatch):
    members, clock, told = make_members(monkeypatch, gradients=None, seconds=9.0)
    members.own.gradients = 50
    members.tell()
    assert told() == {1: [], 2: []}
    members.own.ready = True
    members.tell()
    assert told()[2] == [["status", 50, True, False, "starting", False]]

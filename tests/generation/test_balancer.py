"""Which of several servers gets the next request."""

import pytest

from trl_r1zero.generation.balancer import Balancer


def test_the_server_with_the_fewest_unanswered_requests_gets_the_next():
    balancer = Balancer(["a", "b"])
    with balancer.place() as first, balancer.place() as second:
        assert (first, second) == ("a", "b")
        with balancer.place() as third, balancer.place() as fourth:
            assert (third, fourth) == ("a", "b")
    held = balancer.place()
    assert held.__enter__() == "a"
    for _ in range(3):  # b answers at once each time
        with balancer.place() as url:
            assert url == "b"


def test_an_error_is_an_answer():
    balancer = Balancer(["a", "b"])
    with pytest.raises(ZeroDivisionError), balancer.place():
        raise ZeroDivisionError
    with balancer.place() as url:
        assert url == "a"


def test_a_lost_server_gets_nothing_until_it_is_back():
    balancer = Balancer(["a", "b", "c"])
    assert balancer.lose("a") and balancer.lose("a") and balancer.lose("b")
    assert (balancer.alive, balancer.lost) == (["c"], ["a", "b"])
    with balancer.place() as first, balancer.place() as second:
        assert (first, second) == ("c", "c")
    assert not balancer.lose("c")  # the last one stays
    assert balancer.alive == ["c"]
    balancer.take_back("b")
    assert balancer.alive == ["b", "c"] and balancer.lose("c")

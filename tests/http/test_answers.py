"""Answers that may be given again: which are, and how many are kept."""

from __future__ import annotations

from ipfsreg.http.answers import MAX_AGE_S, MAX_ASKED, MAX_HEAD_BYTES, Answer, Answers
from ipfsreg.http.request import NoBytes, Request

DATE, LATER = b"Tue, 24 Nov 2026 20:00:00 GMT", b"Tue, 24 Nov 2026 20:00:01 GMT"
MESSAGE = b"HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Length: 2\r\n\r\nok"


def answer_of(size: int = 0, *, stands: bool = True, until: float = MAX_AGE_S) -> Answer:
    request = Request("GET", "/", {}, NoBytes(), "192.0.2.1")
    return Answer(request, 200, MESSAGE % DATE + bytes(size), lambda peer: stands, until)


def test_an_answer_is_found_by_all_of_the_bytes_of_its_head() -> None:
    answers, answer = Answers(), answer_of()
    answers.put(b"GET / HTTP/1.1\r\n\r\n", answer)
    assert answers.find(b"GET / HTTP/1.1\r\n\r\n", "192.0.2.1", 0.0) is answer
    assert answers.find(b"GET / HTTP/1.1\r\nA: b\r\n\r\n", "192.0.2.1", 0.0) is None
    assert answers.find(b"get / HTTP/1.1\r\n\r\n", "192.0.2.1", 0.0) is None


def test_an_answer_is_given_with_the_date_of_the_day() -> None:
    answer = answer_of()
    assert bytes(answer.dated(DATE)) == MESSAGE % DATE
    assert bytes(answer.dated(LATER)) == MESSAGE % LATER
    assert bytes(answer.dated(LATER)) == MESSAGE % LATER


def test_what_does_not_stand_any_more_is_forgotten_and_so_is_what_is_old() -> None:
    answers = Answers()
    answers.put(b"a", answer_of(stands=False))
    answers.put(b"b", answer_of(until=5.0))
    assert answers.find(b"a", "192.0.2.1", 0.0) is None
    assert answers.find(b"b", "192.0.2.1", 4.9) is not None
    assert answers.find(b"b", "192.0.2.1", 5.0) is None
    assert (len(answers), answers.bytes_held) == (0, 0)


def test_whether_an_answer_stands_is_asked_for_the_address_it_would_go_to() -> None:
    answers, asked = Answers(), []
    request = Request("GET", "/", {}, NoBytes(), "192.0.2.1")

    def stands(peer: str) -> bool:
        asked.append(peer)
        return True

    answers.put(b"a", Answer(request, 200, MESSAGE % DATE, stands, 5.0))
    answers.find(b"a", "192.0.2.7", 0.0)
    assert asked == ["192.0.2.7"]


def test_what_is_kept_is_bounded_and_the_oldest_gives_way() -> None:
    answers = Answers(max_bytes=100_000)
    for number in range(1000):
        answers.put(b"%d" % number, answer_of(number))
        assert answers.bytes_held <= 100_000
    assert len(answers) > 10
    assert answers.find(b"0", "192.0.2.1", 0.0) is None
    assert answers.find(b"999", "192.0.2.1", 0.0) is not None
    for number in range(1000):
        answers.put(b"%d" % number, answer_of(stands=False))
        answers.find(b"%d" % number, "192.0.2.1", 0.0)
    assert (len(answers), answers.bytes_held) == (0, 0)


def test_one_answer_does_not_take_the_room_of_all_others() -> None:
    answers = Answers(max_bytes=100_000)
    answers.put(b"large", answer_of(30_000))
    answers.put(b"h" * (MAX_HEAD_BYTES + 1), answer_of())
    assert len(answers) == 0


def test_no_secret_of_a_head_stays_in_memory() -> None:
    answers = Answers()
    for name in (b"Authorization", b"authorization", b"AUTHORIZATION"):
        answers.put(b"GET / HTTP/1.1\r\n%s: Basic c2VjcmV0\r\n\r\n" % name, answer_of(), secret=True)
    assert len(answers) == 2, "whoever shouts is the handler's"
    assert not any(b"c2VjcmV0" in name for name in answers._answers)
    assert answers.find(b"GET / HTTP/1.1\r\nAuthorization: Basic c2VjcmV0\r\n\r\n", "192.0.2.1", 0.0) is not None
    assert answers.find(b"GET / HTTP/1.1\r\nAuthorization: Basic b3RoZXIh\r\n\r\n", "192.0.2.1", 0.0) is None
    headers = {"authorization": "Basic c2VjcmV0", "user-agent": "crane", "host": "h", "accept": "x"}
    request = Request("GET", "/", headers, NoBytes(), "192.0.2.1").spent()
    assert request.headers == {"user-agent": "crane", "host": "h"}


def test_what_is_asked_for_the_first_time_is_not_worth_remembering() -> None:
    answers = Answers()
    assert [answers.asked_before(head) for head in (b"a", b"b", b"a", b"a")] == [False, False, True, True]
    for number in range(3 * MAX_ASKED):
        answers.asked_before(b"%d" % number)
        assert len(answers._asked) <= MAX_ASKED


def test_an_answer_made_anew_replaces_the_one_before() -> None:
    answers = Answers()
    answers.put(b"a", answer_of(500))
    answers.put(b"a", answer_of(10))
    held = answers.bytes_held
    fresh = Answers()
    fresh.put(b"a", answer_of(10))
    assert (len(answers), held) == (1, fresh.bytes_held)

"""A judge over HTTP: the wire, the faults that are survived, the keys, and what a reply means."""

import json
import sys
import traceback
from email.utils import formatdate

import pytest

from rewards.judges.address import find_key
from rewards.judges.endpoint import Endpoint, read_verdict
from rewards.judges.interface import Inquiry, JudgeError, Verdict
from rewards.judges.judge import Judge, open_judge
from tests.programs import Program
from tests.rewards.judges.server import Server, serving, verdict, wire

INQUIRY = Inquiry("You grade.", "<text>a bright rim</text>", ("yes", "no"))
YES = Verdict("yes", "as seen")
KEYS = ("MEDVQA_JUDGE_KEY", "OPENAI_API_KEY", "HF_TOKEN", "HF_HUB_OFFLINE")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judge_at(server: Server, **limits) -> Judge:
    limits = {"wait": 0.0, "timeout": 5.0, **limits}
    return Judge(Endpoint(server.url, "judge-1", **limits))


def test_the_wire_is_openais_with_the_roles_apart(server):
    judge = open_judge(server.url, "judge-1", None)
    assert judge.ask([INQUIRY]) == [YES]
    assert server.paths == ["/v1/chat/completions"]
    (body,) = server.bodies
    assert (body["model"], body["temperature"]) == ("judge-1", 0.0)
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"] == INQUIRY.user
    assert system["content"].startswith(INQUIRY.system)
    assert '"yes", "no"' in system["content"]
    assert "authorization" not in server.headers[0]


def test_the_address_may_end_as_people_write_it(server):
    url = server.url
    for end in ("", "/", "/chat/completions"):
        server.url = url + end
        assert judge_at(server).ask([INQUIRY]) == [YES], end
    assert server.paths == ["/v1/chat/completions"] * 3


LIST_BODY = (429, {}, b'[{"error": {"code": 429}}]')  # a real endpoint sends errors as a list


FAULTS = [429, 500, 503, 408, LIST_BODY, "slow", "cut", "hang up", b"no json", b"{}", b"[]", b"3"]
FAULTS += [b'{"choices": []}', b'{"choices": [{"message": null}]}', b"\xff\xfe"]


def test_what_may_pass_is_tried_again_and_counted(server):
    failed = []
    for fault in FAULTS:
        server.faults, server.bodies = [fault, fault], []
        judge = judge_at(server, tries=3, timeout=0.3 if fault == "slow" else 5.0)
        try:
            verdicts = judge.ask([INQUIRY])
        except JudgeError as error:
            verdicts = str(error)
        counts = judge.counts()
        seen = len(server.bodies), counts["judge/retries"], counts["judge/unreadable"]
        if (verdicts, seen) != ([YES], (3, 2, 0)):
            failed.append((fault, verdicts, seen))
    assert failed == []


def test_a_judge_that_stays_away_ends_with_one_line(server):
    for fault in (500, "hang up", b"no json"):
        server.faults, server.bodies = [fault] * 6, []
        with pytest.raises(JudgeError, match="no answer in 3 tries") as error:
            judge_at(server, tries=3).ask([INQUIRY])
        assert len(server.bodies) == 6, fault  # the question, and one that no judge refuses
        assert server.url in str(error.value), fault
        assert "\n" not in str(error.value), fault


def test_nobody_there_ends_with_one_line():
    with serving() as server:
        pass
    with pytest.raises(JudgeError, match="is it running and reachable"):
        judge_at(server, tries=2).ask([INQUIRY])


def test_a_refusal_of_every_request_is_not_tried_again_and_shows_no_key(server, monkeypatch):
    monkeypatch.setenv("MEDVQA_JUDGE_KEY", "very-secret")
    key = "MEDVQA_JUDGE_KEY"
    for status, remedy in {401: key, 403: key, 404: "--judge-model", 400: "oops"}.items():
        server.faults = [(status, {}, b'{"error": {"message": "oops very-secret"}}')] * 2
        server.bodies, server.headers = [], []
        with pytest.raises(JudgeError, match=f"status {status}") as error:
            judge_at(server).ask([INQUIRY])
        assert len(server.bodies) == 2, status
        assert server.headers[0]["authorization"] == "Bearer very-secret", status
        assert remedy in str(error.value), status
        assert "very-secret" not in "".join(traceback.format_exception(error.value)), status
        assert "\n" not in str(error.value), status


def test_pauses_double_from_wait_and_honour_retry_after(server):
    in_decades = {"Retry-After": formatdate(4e9, usegmt=True)}
    server.faults = [500, 500, (429, {"Retry-After": "7"}, b"{}"), (503, in_decades, b"{}")]
    pauses: list[float] = []
    judge = judge_at(server, wait=1.0)
    judge.model._over.wait = pauses.append
    assert judge.ask([INQUIRY]) == [YES]
    first, second, third, fourth = pauses
    assert 1.0 <= first <= 1.5
    assert 2.0 <= second <= 3.0
    assert third == 7.0
    assert fourth == 300.0  # and no longer, whatever is asked for


def test_requests_are_made_at_once(server):
    server.together = 4
    inquiries = [Inquiry("You grade.", f"text {i}", ("yes", "no")) for i in range(4)]
    assert judge_at(server, concurrency=4).ask(inquiries) == [YES] * 4
    assert server.met


def test_no_more_than_concurrency_at_once_and_in_order(server):
    server.reply = lambda body: verdict(body["messages"][1]["content"])
    choices = tuple("abcdefgh")
    inquiries = [Inquiry("You grade.", choice, choices) for choice in choices]
    verdicts = judge_at(server, concurrency=2).ask(inquiries)
    assert [verdict.choice for verdict in verdicts] == list(choices)
    assert server.peak <= 2


def test_an_unreadable_reply_is_asked_once_more_and_then_counted(server):
    server.faults = [json.dumps(wire("Well, it depends.")).encode()]
    judge = judge_at(server)
    assert judge.ask([INQUIRY]) == [YES]
    assert judge.counts()["judge/retries"] == 1
    for content in ("Well, it depends.", None, [{"type": "text"}]):
        server.reply = lambda body, content=content: content
        assert judge.ask([INQUIRY]) == [None]
        counts = judge.counts()
        assert (counts["judge/retries"], counts["judge/unreadable"]) == (1, 1)
    assert judge.counts()["judge/unreadable"] == 0


REPLIES = [
    ('{"reason": "r", "verdict": "2"}', "2"),
    ('{"reason": "r", "verdict": 2}', "2"),
    ('{"reason": "r", "verdict": 2.0}', "2"),
    ('```json\n{"verdict": " (2). "}\n```', "2"),
    ('Here it is: {"verdict": "2"} Good luck!', "2"),
    ('<think>{"verdict": "0"}?</think>{"verdict": "2"}', "2"),
    ('{"reason": "it says {\\"verdict\\": \\"3\\"}", "verdict": "2"}', "2"),
    ('{"verdict": "2"} {"verdict": "3"}', None),  # which of the two?
    ('{"verdict": "2", "verdict": "3"}', None),
    ('{"verdict": "4"}', None),
    ('{"verdict": true}', None),
    ('{"verdict": 1e999}', None),
    ('{"verdict": NaN}', None),
    ('{"verdict": ["2"]}', None),
    ('{"score": 2}', None),
    ('["verdict"]', None),
    ("2", "2"),
    ("", None),
    ('{"verdict": "2"', "2"),
    ('{"verdict": "(2) good"}', "2"),
    ("Verdict: 2, rather 3", None),
    ("{" * 100_000 + "}" * 100_000, None),
    ('{"a":' * 100_000 + "1" + "}" * 100_000, None),
    ("\ud800", None),
]


def test_a_reply_is_read_generously_but_never_guessed():
    failed = []
    for reply, choice in REPLIES:
        found = read_verdict(reply, ("0", "1", "2", "3"))
        if (found and found.choice) != choice:
            failed.append((reply[:80], found))
    assert failed == []


def test_a_choice_is_read_in_any_case():
    assert read_verdict('{"verdict": "Yes"}', ("yes", "no")).choice == "yes"
    assert read_verdict('{"verdict": "None"}', ("A", "none")).choice == "none"


HOSTS = [
    ("https://openai.com/v1", "openai"),
    ("https://api.openai.com/v1", "openai"),
    ("https://x.openai.azure.com/v1", "openai"),
    ("https://router.huggingface.co/v1", "face"),
    ("https://x.endpoints.huggingface.cloud/v1", "face"),
    ("http://localhost:8000/v1", None),
    ("https://openai.com.example.org/v1", None),
    ("https://notopenai.com/v1", None),
]


def test_a_key_goes_to_hosts_of_its_company_only():
    keys = {"OPENAI_API_KEY": "openai", "HF_TOKEN": "face"}
    mine = keys | {"MEDVQA_JUDGE_KEY": "mine"}
    assert [url for url, key in HOSTS if find_key(url, keys) != key] == []
    assert [url for url, _ in HOSTS if find_key(url, mine) != "mine"] == []


def test_the_users_other_tokens_do_not_travel(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    judge_at(server).ask([INQUIRY])
    assert not any("secret" in value for value in server.headers[0].values())


NO_JUDGES = [
    ("http://localhost:8000/v1", None, "add --judge-model NAME"),
    ("http://", "m", "names no host"),
    ("http://[::1/v1", "m", "such as|give one as"),
    ("localhost:8000", "m", "unknown kind of judge"),
    ("", "m", "unknown kind of judge"),
    ("hf:", None, "unknown kind of judge"),
    ("hf:/no/such/folder", None, "no such folder"),
    ("embed:./no_such_folder", None, "no such folder"),
]


def test_a_judge_that_is_none_is_refused_in_one_line():
    for spec, model, problem in NO_JUDGES:
        with pytest.raises(JudgeError, match=problem) as error:
            open_judge(spec, model, None)
        assert "\n" not in str(error.value), spec


def test_passwords_in_an_address_are_not_shown(server):
    server.faults = [404] * 2
    server.url = server.url.replace("//", "//me:hunter2@")
    with pytest.raises(JudgeError) as error:
        judge_at(server).ask([INQUIRY])
    assert "hunter2" not in str(error.value)


@pytest.mark.slow
def test_importing_judges_needs_the_standard_library_only():
    code = "import sys, rewards.judges.judge_rewards, rewards.judges.endpoint\n"
    code += "print({'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules))"
    done = Program(sys.executable, "-c", code).finish()
    assert done.stdout.strip() == "set()", done.stderr

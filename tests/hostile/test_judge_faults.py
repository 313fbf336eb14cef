"""A judge that refuses one text or parts of a request, writes no JSON, or never gives a verdict."""

from typing import Any

import pytest

from rewards.judges.endpoint import PROBE, Endpoint, read_verdict
from rewards.judges.interface import Inquiry, JudgeError, Verdict
from rewards.judges.judge import Judge
from tests.hostile.every import try_every
from tests.rewards.judges.server import Server, verdict

CHOICES = ("yes", "no")
ASKED = [Inquiry("You grade.", f"text {i}", CHOICES) for i in range(3)]
YES = Verdict("yes", "as seen")


def judge_at(server: Server, **limits: Any) -> Judge:
    return Judge(Endpoint(server.url, "judge-1", **{"wait": 0.0, "tries": 2, **limits}))


def parts(body: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in body["messages"])


# How servers refuse one text: a status and a body.
REFUSALS: dict[str, tuple[int, bytes]] = {
    "Azure's filter": (400, b'{"error": {"message": "content management policy"}}'),
    "a moderation": (403, b'{"error": {"message": "your input was flagged"}}'),
    "too long": (400, b'{"error": {"message": "maximum context length is 512 tokens"}}'),
    "too large": (413, b"<html>Request Entity Too Large</html>"),
    "not valid": (422, b'{"detail": "body"}'),
    "it breaks the server": (500, b"CUDA error"),
    "an error as a success": (200, b'{"error": {"code": 400, "message": "blocked"}}'),
    "no choices": (200, b'{"choices": [], "prompt_feedback": {"block_reason": "SAFETY"}}'),
}


def check_one_is_refused(server: Server, name: str) -> None:
    status, body = REFUSALS[name]
    server.reply = lambda asked: (status, {}, body) if "text 1" in parts(asked) else verdict("yes")
    judge = judge_at(server)
    assert judge.ask(ASKED) == [YES, None, YES]
    counts = judge.counts()
    assert (counts["judge/asked"], counts["judge/unreadable"]) == (3, 1)
    assert judge.ask(ASKED[1:2]) == [None]  # alone, as a resumed run asks again
    server.reply = lambda asked: (status, {}, body)
    with pytest.raises(JudgeError):
        judge.ask(ASKED)
    assert PROBE.user in parts(server.bodies[-1])


def test_a_refused_text_gets_no_verdict_and_a_judge_that_refuses_all_ends(server: Server) -> None:
    check_one_is_refused(server, "Azure's filter")


@pytest.mark.exhaustive
def test_whatever_way_one_text_is_refused_the_others_are_judged(server: Server) -> None:
    try_every(lambda name: check_one_is_refused(server, name), REFUSALS)


# What servers do not take, as they say it: status and text of a refusal, by the part's name.
FORMS: dict[str, tuple[int, str]] = {
    "max_tokens": (400, "Unsupported parameter: 'max_tokens' is not supported with this model."),
    "temperature": (400, "'temperature' does not support 0.0 with this model."),
    "role": (400, "System role not supported"),
}
OTHER_FORMS = {
    "max_tokens": (422, '{"loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}'),
    "temperature": (400, "Unknown field: temperature"),
    "role": (500, "Conversation roles must alternate user/assistant/user/assistant/..."),
}


def check_the_form_follows(server: Server, forms: dict[str, tuple[int, str]]) -> None:
    def reply(body: dict[str, Any]) -> Any:
        sent = {name: name in body for name in ("max_tokens", "temperature")}
        sent["role"] = body["messages"][0]["role"] == "system"
        refused = [form for name, form in forms.items() if sent[name]]
        return (refused[0][0], {}, refused[0][1].encode()) if refused else verdict("yes")

    server.reply, server.together, server.bodies = reply, 3, []
    judge = judge_at(server, tries=1)
    assert judge.ask(ASKED) == [YES] * 3
    (last,) = server.bodies[-1]["messages"]
    assert last["role"] == "user"
    assert last["content"].startswith("You grade.")
    assert "text" in last["content"]
    assert len(server.bodies) == 12  # each part was refused once to each of three
    judge.ask([Inquiry("You grade.", "more", CHOICES)])
    assert len(server.bodies) == 13


def test_the_request_leaves_out_what_the_server_does_not_take(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    check_the_form_follows(server, FORMS)
    assert "asked without temperature, which it does not take" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_refusals_of_a_form_are_understood_in_other_words(server: Server) -> None:
    check_the_form_follows(server, OTHER_FORMS)


def test_a_judge_whose_replies_hold_no_verdict_is_said_once(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda body: "It depends\non much."
    judge = judge_at(server)
    assert judge.ask(ASKED) == [None] * 3
    said = capsys.readouterr().err
    assert f"judge {server.url}: no verdict in 3 of 3 replies, such as 'It depends on" in said
    assert said.count("\n") == 1
    judge.ask(ASKED)
    assert capsys.readouterr().err == ""


def test_a_judge_that_is_mostly_read_is_not_complained_about(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda body: "?" if "text 1" in parts(body) else verdict("no")
    assert judge_at(server).ask(ASKED)[1] is None
    assert capsys.readouterr().err == ""


def test_a_reply_in_parts_is_read(server: Server) -> None:
    said = verdict("no")
    server.reply = lambda body: [{"type": "thinking"}, {"type": "text", "text": said}]
    assert judge_at(server).ask(ASKED[:1]) == [Verdict("no", "as seen")]


def test_a_judge_is_no_request_to_the_hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert judge_at(server).ask(ASKED[:1]) == [YES]


PLAIN = [
    '{"reason": "as seen,\nand named", "verdict": "yes"}',
    "{'reason': 'so', 'verdict': 'yes'}",
    '{"reason": "so", "verdict": "yes",}',
    '{"reason": "so", "verdict": "yes"',
    '{"result": {"Verdict": "YES"}}',
    '[{"verdict": "yes"}]',
    '{"verdict": "yes"}\n{"verdict": "yes"}',
    '{"verdict":\n\n  "yes" // coherent\n}',
    "{\u201cverdict\u201d: \u201cyes\u201d}",
    "**Verdict:** Yes.",
    "I looked at it.\nVerdict: yes",
    "Yes.",
    "**yes**",
    '{"reason": "\\"verdict\\": \\"no\\" would be harsh", "verdict": "yes"}',
]
IN_DOUBT = [
    '{"verdict": "yes or no"}',
    '{"verdict": "not yes"}',
    "Verdict: yes, rather no",
    "verdict: yes\nverdict: no",
    "<think>verdict: yes\n",
    "yes and no",
    "The verdict is not known.",
]


def test_a_raw_line_break_in_a_reply_is_read() -> None:
    assert read_verdict(PLAIN[0], CHOICES) == Verdict("yes", "as seen, and named")


@pytest.mark.exhaustive
def test_a_plain_reply_is_read_in_any_form_and_a_doubt_is_none() -> None:
    def is_read(reply: str) -> None:
        found = read_verdict(reply, CHOICES)
        assert (found and found.choice) == ("yes" if reply in PLAIN else None)

    try_every(is_read, [*PLAIN, *IN_DOUBT])

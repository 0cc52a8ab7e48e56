"""The playground: one prompt, two models, turn after turn."""

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from tests.webapp.cast import count_queries, make_actor, make_viewer, sign_in
from tests.webapp.deployments.conftest import read
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import DatasetVersion
from webapp.deployments.models import Deployment, SamplingCall
from webapp.fleet.models import BaseModel

Status = SamplingCall.Status


@pytest.fixture
def question(checkpoint: Checkpoint, base_model: BaseModel) -> dict[str, str]:
    return {
        "left": checkpoint.pk,
        "right": base_model.pk,
        "system": "",
        "prompt": "What is 1+1?",
        "temperature": "0",
        "max_tokens": "32",
        "seed": "7",
    }


def answer(call: SamplingCall, text: str) -> None:
    """What a sampler writes."""
    result = {
        "sequences": [
            {
                "tokens": [5, 2],
                "logprobs": [-0.05, -4.0],
                "text": text,
                "pieces": [text, "<|im_end|>"],
                "alternatives": [[[5, text, -0.05], [6, "3", -3.2]], [[2, "<|im_end|>", -4.0]]],
                "stop_reason": "stop",
            }
        ],
        "adapter": "ckpt-1",
        "digest": "d1ge57" * 10,
        "engine": "vLLM 0.32.0",
    }
    SamplingCall.objects.filter(pk=call.pk).update(
        status=Status.DONE, result=json.dumps(result).encode(), finished_at=now()
    )


def test_a_link_with_a_checkpoint_opens_it_beside_its_base_model(
    browser: Client, checkpoint: Checkpoint, base_model: BaseModel
) -> None:
    page = read(browser, f"/playground/?left={checkpoint.pk}")
    assert f'value="{checkpoint.pk}" selected' in page
    assert f'value="{base_model.pk}" selected' in page


def test_both_models_are_asked_the_same_with_the_same_seed(
    browser: Client, question: dict[str, str], checkpoint: Checkpoint
) -> None:
    reply = browser.post("/playground/", question)
    left, right = SamplingCall.objects.all()
    assert (left.checkpoint, right.checkpoint) == (checkpoint, None)
    assert left.payload == right.payload
    assert left.payload["params"] == {"max_tokens": 32, "temperature": 0.0, "seed": 7}
    query = parse_qs(urlsplit(reply.headers["Location"]).query)
    assert query == {"left-turns": [str(left.pk)], "right-turns": [str(right.pk)]}


def test_an_answer_is_asked_for_until_it_is_there(
    browser: Client, question: dict[str, str]
) -> None:
    url = browser.post("/playground/", question).headers["Location"]
    call = SamplingCall.objects.all()[0]
    assert "waits for a sampler" in read(browser, url)
    assert f'hx-get="/playground/answers/{call.pk}/?shown=queued"' in read(browser, url)
    assert browser.get(f"/playground/answers/{call.pk}/?shown=queued").status_code == 204

    answer(call, "2")
    part = read(browser, f"/playground/answers/{call.pk}/")
    assert "hx-get" not in part
    assert f'href="/checkpoints/{call.checkpoint_id}/"' in part
    assert ">step-10</a>" in part
    assert 'digest <span class="mono" title="' + "d1ge57" * 10 in part
    assert "<span>vLLM 0.32.0</span>" in part
    assert 'data-doubt="0"' in part
    assert 'data-doubt="4"' in part
    assert 'data-logprob="-4.0000"' in part


def test_the_next_turn_carries_each_sides_own_answers(
    browser: Client, question: dict[str, str]
) -> None:
    url = browser.post("/playground/", question | {"system": "Be short."}).headers["Location"]
    left, right = SamplingCall.objects.all()
    answer(left, "two")
    answer(right, "It is 2.")
    page = read(browser, url)
    assert "Be short." in page

    following = question | {"system": "Be short.", "prompt": "And 2+2?"}
    url = browser.post(url, following).headers["Location"]
    for call, said in zip(list(SamplingCall.objects.all())[2:], ("two", "It is 2."), strict=True):
        assert [(each["role"], each["content"]) for each in call.payload["messages"]] == [
            ("system", "Be short."),
            ("user", "What is 1+1?"),
            ("assistant", said),
            ("user", "And 2+2?"),
        ]
    page = read(browser, url)
    assert page.index("It is 2.") < page.index("And 2+2?", page.index("It is 2."))


def test_a_turn_that_failed_is_left_out_of_what_is_asked_next(
    browser: Client, question: dict[str, str]
) -> None:
    url = browser.post("/playground/", question).headers["Location"]
    SamplingCall.objects.update(status=Status.FAILED, error="No server.")
    assert read(browser, url).count("No server.") == 2
    browser.post(url, question | {"prompt": "Again?"})
    last = SamplingCall.objects.order_by("-pk")[0]
    assert [each["content"] for each in last.payload["messages"]] == ["Again?"]


def test_one_model_alone_may_be_asked(browser: Client, question: dict[str, str]) -> None:
    url = browser.post("/playground/", question | {"right": ""}).headers["Location"]
    assert SamplingCall.objects.count() == 1
    assert "right-turns" not in url


def test_a_deployment_can_be_asked(
    alice: Actor, browser: Client, question: dict[str, str], checkpoint: Checkpoint
) -> None:
    deployment = Deployment.objects.create(
        project=alice.project,
        name="calls",
        base_model=checkpoint.base_model,
        checkpoint=checkpoint,
        status=Deployment.Status.READY,
    )
    browser.post("/playground/", question | {"left": deployment.pk})
    call = SamplingCall.objects.all()[0]
    assert (call.checkpoint, call.deployment) == (checkpoint, deployment)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("prompt", "", "Write a message first."),
        ("temperature", "99", "temperature is 99.0; it lies between 0 and 10."),
        ("max_tokens", "0", "max_tokens is 0; it lies between 1"),
        ("left", "ckpt-nothing", "Select a valid choice"),
    ],
)
def test_a_question_that_cannot_be_asked_says_why_and_asks_nobody(
    browser: Client, question: dict[str, str], field: str, value: str, complaint: str
) -> None:
    reply = browser.post("/playground/", question | {field: value})
    assert reply.status_code == 400
    assert complaint in reply.content.decode()
    assert not SamplingCall.objects.exists()


def test_a_conversation_takes_the_same_queries_for_one_turn_and_for_four(
    browser: Client, question: dict[str, str]
) -> None:
    url = browser.post("/playground/", question).headers["Location"]
    once = count_queries(browser, url)
    for _ in range(3):
        url = browser.post(url, question).headers["Location"]
    assert count_queries(browser, url) == once


def test_a_call_can_be_cancelled_while_it_waits(browser: Client, question: dict[str, str]) -> None:
    browser.post("/playground/", question)
    call = SamplingCall.objects.all()[0]
    part = browser.post(f"/playground/answers/{call.pk}/cancel/").content.decode()
    assert "Stopped before it was whole." in part
    call.refresh_from_db()
    assert call.status == Status.CANCELLED


def test_another_projects_conversation_does_not_exist(
    browser: Client, question: dict[str, str]
) -> None:
    url = browser.post("/playground/", question).headers["Location"]
    call = SamplingCall.objects.all()[0]
    stranger = sign_in(make_actor("charlie"))
    assert "What is 1+1?" not in read(stranger, url)
    assert stranger.get(f"/playground/answers/{call.pk}/").status_code == 404
    assert stranger.post(f"/playground/answers/{call.pk}/cancel/").status_code == 404


def test_a_viewer_reads_a_conversation_and_asks_nothing(
    alice: Actor, browser: Client, question: dict[str, str]
) -> None:
    url = browser.post("/playground/", question).headers["Location"]
    viewer = sign_in(make_viewer(alice))
    page = read(viewer, url)
    assert "What is 1+1?" in page
    assert "it may read, not ask" in page
    assert "viewer" in viewer.post("/playground/", question).content.decode()
    assert SamplingCall.objects.count() == 2


@pytest.mark.django_db
def test_without_a_base_model_the_page_shows_the_command_that_adds_one() -> None:
    page = read(sign_in(make_actor("dora")), "/playground/")
    assert "manage.py model add" in page


def test_all_settings_reach_both_models_and_stay_for_the_next_conversation(
    browser: Client, question: dict[str, str]
) -> None:
    chosen = {"top_p": "0.9", "top_k": "40", "stop": "END\r\n\\n\\n", "system": "Be short."}
    url = browser.post("/playground/", question | chosen).headers["Location"]
    left, right = SamplingCall.objects.all()
    assert left.payload == right.payload
    assert left.payload["params"] == {
        "max_tokens": 32,
        "temperature": 0.0,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 7,
        "stop": ["END", "\n\n"],
    }
    assert (left.is_streamed, left.payload["topk_sample_logprobs"]) == (True, 5)
    restart = browser.get(url).context["restart"]
    page = read(browser, restart)
    assert "top p 0.9, top k 40, seed 7, own stop texts, a system prompt" in page
    assert ">\nEND\n\\n\\n</textarea>" in page


def test_the_link_may_say_settings_and_the_message(browser: Client, checkpoint: Checkpoint) -> None:
    page = read(browser, f"/playground/?left={checkpoint.pk}&right=&temperature=0.7&prompt=Hi")
    assert "temperature 0.7" in page
    assert ">\nHi</textarea>" in page


def test_what_else_could_have_been_said_is_told_at_each_token(
    browser: Client, question: dict[str, str]
) -> None:
    browser.post("/playground/", question)
    call = SamplingCall.objects.all()[0]
    answer(call, "2")
    told = browser.get(f"/playground/answers/{call.pk}/alternatives/").json()
    assert told == {"alternatives": [[[5, "2", -0.05], [6, "3", -3.2]], [[2, "<|im_end|>", -4.0]]]}


class TestKeeping:
    """An answer becomes a row of a dataset."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, settings: Settings) -> Path:
        settings.HONE_HOME = tmp_path
        settings.FILE_UPLOAD_TEMP_DIR = tmp_path
        return tmp_path

    def test_the_conversation_up_to_it_is_the_row_and_the_page_links_to_it(
        self, browser: Client, question: dict[str, str], checkpoint: Checkpoint, home: Path
    ) -> None:
        url = browser.post("/playground/", question | {"system": "Be short."}).headers["Location"]
        call = SamplingCall.objects.all()[0]
        answer(call, "two")
        assert f'data-keep="/playground/answers/{call.pk}/keep/"' in read(browser, url)
        part = browser.post(f"/playground/answers/{call.pk}/keep/", {"name": "good ones"})
        version = DatasetVersion.objects.get()
        assert (
            f'<a href="/datasets/versions/{version.pk}/">good ones v1</a>' in part.content.decode()
        )
        assert f'kept in <a href="/datasets/versions/{version.pk}/">good ones v1</a>' in read(
            browser, url
        )
        assert json.loads((home / version.upload_path).read_text()) == {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "What is 1+1?"},
                {"role": "assistant", "content": "two"},
            ],
            "answered_by": checkpoint.tinker_path,
            "digest": "d1ge57" * 10,
        }

    def test_a_name_is_needed_and_a_missing_answer_is_not_kept(
        self, browser: Client, question: dict[str, str]
    ) -> None:
        browser.post("/playground/", question)
        call = SamplingCall.objects.all()[0]
        keep = f"/playground/answers/{call.pk}/keep/"
        assert (
            "There is no answer to keep here."
            in browser.post(keep, {"name": "kept"}).content.decode()
        )
        answer(call, "two")
        assert "A dataset needs a name." in browser.post(keep, {"name": ""}).content.decode()
        assert not DatasetVersion.objects.exists()

    def test_a_viewer_and_a_stranger_keep_nothing(
        self, alice: Actor, browser: Client, question: dict[str, str]
    ) -> None:
        browser.post("/playground/", question)
        call = SamplingCall.objects.all()[0]
        answer(call, "two")
        keep = f"/playground/answers/{call.pk}/keep/"
        assert sign_in(make_viewer(alice)).post(keep, {"name": "x"}).status_code == 400
        assert sign_in(make_actor("charlie")).post(keep, {"name": "x"}).status_code == 404
        assert not DatasetVersion.objects.exists()

"""Which model directories are offered, and what the others are told."""

import json
import shutil
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from tests.webapp.cast import make_actor
from training.engine.core import Engine
from training.errors import InvalidInput
from webapp.accounts.models import User
from webapp.accounts.services import create_key
from webapp.core.errors import NotFound, UserError
from webapp.fleet.directories import inspect_directory
from webapp.fleet.models import BaseModelName
from webapp.fleet.services import add_base_model, find_base_model, remove_base_model

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        inspect_directory(folder)
    return error.value.message


def test_a_directory_is_described_from_its_files_alone() -> None:
    directory = inspect_directory(TINY)
    assert directory.num_parameters == 1_049_728
    assert directory.context_tokens == 512
    assert directory.vocab_size == 2048
    assert directory.has_chat_template
    assert len(directory.digest) == 64


def test_other_weights_have_another_digest(folder: Path) -> None:
    before = inspect_directory(folder).digest
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert inspect_directory(folder).digest != before


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    assert "is not a directory" in refusal(tmp_path / "nothing")


def test_a_path_that_is_longer_than_any_is_no_directory(tmp_path: Path) -> None:
    assert "is not a directory on this machine" in refusal(tmp_path / ("x" * 300))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)


def test_a_config_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(folder)


def test_an_unknown_architecture_is_refused_by_name(folder: Path) -> None:
    change_config(folder, architectures=["MambaForCausalLM"])
    assert "MambaForCausalLM" in refusal(folder)


def test_sliding_windows_are_taken(folder: Path) -> None:
    change_config(folder, architectures=["MistralForCausalLM"], model_type="mistral")
    change_config(folder, sliding_window=128)
    assert inspect_directory(folder).architecture == "MistralForCausalLM"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["MambaForCausalLM"], "state_size": 16}, "keeps a state"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "encoder"),
        ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}, "than text"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of linear_attention"),
    ],
)
def test_other_kinds_of_models_are_refused_with_the_reason(
    folder: Path, changes: dict[str, object], reason: str
) -> None:
    change_config(folder, **changes)
    assert reason in refusal(folder)


def test_the_context_ends_where_the_engine_ends_it(folder: Path) -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 256}
    change_config(folder, rope_parameters=rope)
    assert inspect_directory(folder).context_tokens == 256


def test_quantized_weights_are_refused(folder: Path) -> None:
    change_config(folder, quantization_config={"bits": 4})
    assert "quantized" in refusal(folder)


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no .safetensors" in refusal(folder)


def test_a_torn_weights_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "model.safetensors is not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("header", [b"[]", b"[" * 200_000, b'{"a": 1}', b"{"])
def test_a_weights_file_with_an_odd_header_is_refused(folder: Path, header: bytes) -> None:
    weights = len(header).to_bytes(8, "little") + header
    (folder / "model.safetensors").write_bytes(weights)
    assert "is not a safetensors file" in refusal(folder)


def test_a_missing_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refusal(folder)


@pytest.mark.django_db
def test_rest_and_the_command_refuse_in_the_engines_words(folder: Path) -> None:
    change_config(folder, architectures=["MambaForCausalLM"], state_size=16)
    with pytest.raises(InvalidInput) as error:
        Engine.load(folder)
    said = str(error.value)
    assert said.startswith("MambaForCausalLM keeps a state from token to token")
    alice = make_actor()
    User.objects.filter(pk=alice.user.pk).update(is_staff=True)
    _, secret = create_key(actor=alice, name="test")
    answer = Client(headers={"X-API-Key": secret}).post(
        "/rest/base-models",
        {"path": str(folder), "names": ["acme/mamba"]},
        content_type="application/json",
    )
    assert answer.status_code == 400
    assert said in answer.content.decode()
    with pytest.raises(CommandError) as failure:
        call_command("model", "add", str(folder), "--name", "acme/mamba")
    assert said in str(failure.value)


@pytest.mark.django_db
def test_one_directory_carries_several_names() -> None:
    first = add_base_model(path=str(TINY), names=["acme/tiny"])
    second = add_base_model(path=str(TINY), names=["acme/tiny-too"])
    assert first == second
    assert find_base_model("acme/tiny-too") == first
    assert find_base_model(first.id) == first
    assert first.name == "acme/tiny"


@pytest.mark.django_db
def test_a_name_belongs_to_one_directory(folder: Path) -> None:
    add_base_model(path=str(TINY), names=["acme/tiny"])
    with pytest.raises(UserError, match="already the name of"):
        add_base_model(path=str(folder), names=["acme/tiny"])
    assert not BaseModelName.objects.filter(base_model__path=str(folder)).exists()


@pytest.mark.django_db
def test_a_model_without_a_name_is_refused() -> None:
    with pytest.raises(UserError, match="at least one name"):
        add_base_model(path=str(TINY), names=[" "])


@pytest.mark.django_db
def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    add_base_model(path=str(TINY), names=["acme/tiny"])
    with pytest.raises(NotFound, match="It offers: acme/tiny"):
        find_base_model("acme/huge")


@pytest.mark.django_db
def test_a_removed_model_is_no_longer_offered_and_its_files_stay() -> None:
    add_base_model(path=str(TINY), names=["acme/tiny"])
    remove_base_model(name="acme/tiny")
    assert TINY.is_dir()
    with pytest.raises(NotFound):
        find_base_model("acme/tiny")

"""What the calls take: losses, optimizers, LoRA settings, kinds of input, sampling options."""

from typing import Any

import tinker
from registry import case
from tinker import types
from training_cases import check_output
from world import (
    ADAM,
    RANK,
    World,
    make_datum,
    make_prompt,
    make_scored_datum,
    make_tokens,
    resolve,
)

PICTURE = b"\x89PNG\r\n\x1a\n"
MASK = [0.0] * 4 + [1.0] * 8


def learn(world: World, loss: str, datum: Any, model: Any = None, **config: Any) -> None:
    """On a model of its own: a refused loss takes the next update with it."""
    model = model or world.open_model()
    check_output(model.forward_backward([datum], loss, config or None).result())
    assert model.optim_step(ADAM).result().metrics is not None


@case("Losses")
def cross_entropy(world: World) -> None:
    learn(world, "cross_entropy", make_datum())


@case("Losses")
def importance_sampling(world: World) -> None:
    learn(world, "importance_sampling", make_scored_datum())


@case("Losses")
def ppo(world: World) -> None:
    learn(world, "ppo", make_scored_datum(), clip_low_threshold=0.9)


@case("Losses")
def cispo(world: World) -> None:
    learn(world, "cispo", make_scored_datum(), clip_high_threshold=5.0)


@case("Losses")
def dro(world: World) -> None:
    learn(world, "dro", make_scored_datum(), beta=0.05)


@case("Losses")
def gspo(world: World) -> None:
    scored = {"logprobs": [-6.0] * 12, "advantages": MASK, "sequence_ratio_mask": MASK}
    learn(world, "gspo", make_datum(**scored))


@case("Losses")
def stable_reinforce(world: World) -> None:
    """Samples that were recorded when they were drawn, and the spans that name them."""
    model = world.open_model()
    sampler = resolve(model.save_weights_and_get_sampling_client(record_stability_info=True))
    params = types.SamplingParams(max_tokens=5, stop=[])
    prompt = make_tokens(8)
    drawn = resolve(sampler.sample(types.ModelInput.from_ints(prompt), 1, params)).sequences[0]
    learn(world, "stable_reinforce", trace(prompt, drawn), model, kl_coeff=0.1)


def trace(prompt: list[int], drawn: Any) -> Any:
    """A datum that says which of its tokens were sampled, and in which sequence."""
    tokens = prompt + list(drawn.tokens)
    place = len(prompt) - 1
    inputs = {
        "target_tokens": tokens[1:],
        "logprobs": [0.0] * place + list(drawn.logprobs),
        "advantages": [0.0] * place + [1.0] * len(drawn.tokens),
    }
    datum = types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
    name, count = drawn.sequence_id, len(drawn.tokens)
    given, sampled = types.PromptProvenanceSpan, types.SampledProvenanceSpan
    return datum.with_provenance(
        model_input=[
            given(sequence_id=name, offset=0, length=len(prompt)),
            sampled(sequence_id=name, offset=0, length=count - 1),
        ],
        loss_fn_inputs=[
            given(sequence_id=name, offset=1, length=place),
            sampled(sequence_id=name, offset=0, length=count),
        ],
    )


@case("Losses")
def custom(world: World) -> None:
    """The name of what create_custom_loss has uploaded."""
    handle = world.loss
    assert handle.loss_id, "the loss was not uploaded: the server said that the SDK runs it"
    learn(world, "custom", make_datum(), loss_id=handle.loss_id)


@case("Optimizers", "AdamParams")
def adam(world: World) -> None:
    model = world.open_model()
    model.forward_backward([make_datum()], "cross_entropy").result()
    params = types.AdamParams(learning_rate=1e-3, weight_decay=0.01, grad_clip_norm=1.0)
    assert model.optim_step(params).result().metrics is not None


@case("Optimizers", "DimuonParams")
def dimuon(world: World) -> None:
    model = world.open_model(optimizer=tinker.DimuonOptimizerConfig())
    model.forward_backward([make_datum()], "cross_entropy").result()
    assert model.optim_step(types.DimuonParams(learning_rate=1e-3)).result().metrics is not None


@case("LoRA configuration", "rank", "seed")
def same_seed(world: World) -> None:
    first, second = world.open_model(), world.open_model()
    losses = [loss_after_a_step(world, model) for model in (first, second)]
    assert abs(losses[0] - losses[1]) < 1e-4
    assert first.get_info().lora_rank == RANK


def loss_after_a_step(world: World, model: Any) -> float:
    world.train(model)
    return float(resolve(model.forward([make_datum()], "cross_entropy")).metrics["loss:sum"])


@case("LoRA configuration", "train_unembed", "train_mlp", "train_attn")
def parts_of_the_model(world: World) -> None:
    for part in ("train_unembed", "train_mlp", "train_attn"):
        world.train(resolve(world.start_model(**{part: False})))


def train_on(world: World, *chunks: Any) -> None:
    text = types.EncodedTextChunk(tokens=make_tokens(12))
    length = 12 + sum(getattr(chunk, "expected_tokens", 0) or 4 for chunk in chunks)
    inputs = {"target_tokens": make_tokens(length), "weights": [1.0] * length}
    datum = types.Datum(model_input=types.ModelInput(chunks=[*chunks, text]), loss_fn_inputs=inputs)
    # A model of its own: the SDK counts a datum that it then cannot send.
    world.open_model().forward_backward([datum], "cross_entropy").result()


def sample_after(world: World, *chunks: Any) -> None:
    prompt = types.ModelInput(chunks=[*chunks, types.EncodedTextChunk(tokens=make_tokens(4))])
    params = types.SamplingParams(max_tokens=2)
    assert resolve(world.sampler.sample(prompt, 1, params)).sequences


def make_image() -> Any:
    return types.ImageChunk(data=PICTURE, format="png", expected_tokens=4)


def make_pointer() -> Any:
    place = "tinker://assets/picture.png"
    return types.ImageAssetPointerChunk(location=place, format="png", expected_tokens=4)


def make_sound() -> Any:
    """Four frames of one number: dtype, number of dimensions, dimensions, payload."""
    return types.DmelChunk(dmel=bytes([0, 2, 4, 1]) + bytes(16))


@case("Training input", "EncodedTextChunk in training")
def text_in_training(world: World) -> None:
    world.model.forward_backward([make_datum()], "cross_entropy").result()


@case("Training input", "ImageChunk in training")
def image_in_training(world: World) -> None:
    train_on(world, make_image())


@case("Training input", "ImageAssetPointerChunk in training")
def pointer_in_training(world: World) -> None:
    train_on(world, make_pointer())


@case("Training input", "DmelChunk in training")
def sound_in_training(world: World) -> None:
    train_on(world, make_sound())


@case("Sampling input", "EncodedTextChunk in a prompt")
def text_in_a_prompt(world: World) -> None:
    sample_after(world)


@case("Sampling input", "ImageChunk in a prompt")
def image_in_a_prompt(world: World) -> None:
    sample_after(world, make_image())


@case("Sampling input", "ImageAssetPointerChunk in a prompt")
def pointer_in_a_prompt(world: World) -> None:
    sample_after(world, make_pointer())


@case("Sampling input", "DmelChunk in a prompt")
def sound_in_a_prompt(world: World) -> None:
    sample_after(world, make_sound())


def sample(world: World, num_samples: int = 1, *, params: Any = None, **options: Any) -> Any:
    params = params or types.SamplingParams(max_tokens=3)
    return resolve(world.sampler.sample(make_prompt(8), num_samples, params, **options))


@case("Sampling options")
def num_samples(world: World) -> None:
    assert len(sample(world, 3).sequences) == 3


@case("Sampling options")
def include_prompt_logprobs(world: World) -> None:
    logprobs = sample(world, include_prompt_logprobs=True).prompt_logprobs
    assert (len(logprobs), logprobs[0]) == (8, None)


@case("Sampling options")
def topk_prompt_logprobs(world: World) -> None:
    rows = sample(world, include_prompt_logprobs=True, topk_prompt_logprobs=2).topk_prompt_logprobs
    assert rows[0] is None
    assert all(len(row) == 2 for row in rows[1:])


@case("Sampling options")
def topk_sample_logprobs(world: World) -> None:
    (sequence,) = sample(world, topk_sample_logprobs=2).sequences
    assert len(sequence.topk_logprobs) == len(sequence.tokens)


@case("Sampling options")
def target_prompt_logprobs(world: World) -> None:
    targets = types.TensorData(data=make_tokens(14), dtype="int64", shape=[7, 2])
    scored = sample(world, target_prompt_logprobs=targets).target_prompt_logprobs
    assert scored.shape == [7, 2]


@case("Sampling options")
def prompt_alt_tokens_k(world: World) -> None:
    assert sample(world, prompt_alt_tokens_k=2).prompt_alt_tokens is not None


@case("Sampling options")
def prompt_logprobs_last_n(world: World) -> None:
    answer = sample(world, include_prompt_logprobs=True, prompt_logprobs_last_n=3)
    assert [each is None for each in answer.prompt_logprobs] == [True] * 5 + [False] * 3


@case("Sampling options")
def max_tokens(world: World) -> None:
    params = types.SamplingParams(max_tokens=2, stop=[])
    (sequence,) = sample(world, params=params).sequences
    assert (len(sequence.tokens), sequence.stop_reason) == (2, "length")


@case("Sampling options", "seed", "temperature", "top_p", "top_k")
def same_draw_twice(world: World) -> None:
    params = types.SamplingParams(max_tokens=6, seed=5, temperature=0.7, top_p=0.9, top_k=50)
    drawn = [list(sample(world, params=params).sequences[0].tokens) for _ in range(2)]
    assert drawn[0] == drawn[1]


@case("Sampling options")
def stop(world: World) -> None:
    greedy = {"max_tokens": 4, "temperature": 0.0}
    (free,) = sample(world, params=types.SamplingParams(stop=[], **greedy)).sequences
    first = free.tokens[0]
    (ended,) = sample(world, params=types.SamplingParams(stop=[first], **greedy)).sequences
    assert (list(ended.tokens), ended.stop_reason) == ([first], "stop")

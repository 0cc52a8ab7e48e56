"""Reinforcement learning that is watched as it goes: a test set, a benchmark, a judge of one's
own, and a penalty for leaving the base model."""

import asyncio

import chz
import tinker
from tinker_cookbook import renderers
from tinker_cookbook.eval import BenchmarkEvaluator
from tinker_cookbook.eval.custom_evaluators import CustomEvaluator
from tinker_cookbook.eval.evaluators import SamplingClientEvaluator
from tinker_cookbook.recipes.math_rl.math_env import Gsm8kDatasetBuilder
from tinker_cookbook.rl import train
from tinker_cookbook.tokenizer_utils import get_tokenizer

RENDERER = "qwen3_instruct"
SUMS = [{"input": f"What is {a} + {a}?", "output": str(a + a)} for a in range(4)]


@chz.chz
class Settings:
    log_path: str
    model_name: str


class Surprise(SamplingClientEvaluator):
    """How unlikely a sentence is: what an evaluator needs no sampling for."""

    def __init__(self, model_name: str) -> None:
        ids = get_tokenizer(model_name).encode("What is 1 + 1?")
        self.prompt = tinker.ModelInput.from_ints(ids)

    async def __call__(self, sampling_client: tinker.SamplingClient) -> dict[str, float]:
        logprobs = await sampling_client.compute_logprobs(self.prompt)
        return {"surprise": -sum(logprobs[1:])}


def build(settings: Settings) -> train.Config:
    name = settings.model_name
    renderer = renderers.get_renderer(RENDERER, get_tokenizer(name))
    return train.Config(
        log_path=settings.log_path,
        model_name=name,
        renderer_name=RENDERER,
        recipe_name="evaluators",
        dataset_builder=Gsm8kDatasetBuilder(
            batch_size=4,
            group_size=4,
            model_name_for_tokenizer=name,
            renderer_name=RENDERER,
            convo_prefix=None,
        ),
        evaluator_builders=[
            lambda: BenchmarkEvaluator("gsm8k", renderer, max_examples=8, max_tokens=16),
            lambda: CustomEvaluator(SUMS, str.__eq__, name, RENDERER),
            lambda: Surprise(name),
        ],
        kl_penalty_coef=0.5,
        kl_reference_config=train.KLReferenceConfig(base_model=name),
        learning_rate=1e-3,
        lora_rank=8,
        max_tokens=8,
        max_steps=2,
        eval_every=1,
    )


asyncio.run(train.main(build(chz.entrypoint(Settings))))

"""Decisions: a model is trained on the choice itself, then on the distribution over the choices."""

import asyncio
import json

import chz
import tinker
from tinker_cookbook import renderers
from tinker_cookbook.recipes.decisions import (
    Decision,
    DecisionRenderer,
    decision_choice_datums,
    decision_dist_datums,
    probability_loss,
    sample_decision,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer

CHOICES = [("even", "It can be halved"), ("odd", "It cannot")]
ADAM = tinker.AdamParams(learning_rate=5e-3)


@chz.chz
class Settings:
    model_name: str
    renderer_name: str


async def main(settings: Settings) -> None:
    service = tinker.ServiceClient(user_metadata={"recipe_name": "decisions"})
    model = await service.create_lora_training_client(settings.model_name, rank=8)
    renderer = renderers.get_renderer(settings.renderer_name, get_tokenizer(settings.model_name))
    rendering = DecisionRenderer(renderer)
    decision = Decision("Is 4 even or odd?", CHOICES)
    told = [await ask(model, rendering, decision)]
    loss = probability_loss(lambda probs, target: ((probs - target) ** 2).sum())
    for _ in range(3):
        data = decision_dist_datums(rendering, [(decision, {"even": 1.0})])
        await train(model, model.forward_backward_custom(data, loss))
    told.append(await ask(model, rendering, decision))
    for _ in range(6):
        data = decision_choice_datums(rendering, [(decision, "odd")])
        await train(model, model.forward_backward(data, "cross_entropy"))
    told.append(await ask(model, rendering, decision))
    print(json.dumps(told))


async def train(model: tinker.TrainingClient, gradient: tinker.APIFuture) -> None:
    update = model.optim_step(ADAM)
    await gradient
    await update


async def ask(
    model: tinker.TrainingClient, rendering: DecisionRenderer, decision: Decision
) -> dict[str, float]:
    sampler = await model.save_weights_and_get_sampling_client()
    return await sample_decision(sampler, rendering.render(decision))


asyncio.run(main(chz.entrypoint(Settings)))

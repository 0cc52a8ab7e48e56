"""A checkpoint on its way out: downloaded, merged and made an adapter, beside what it scores."""

import json
from pathlib import Path

import chz
import tinker
from tinker_cookbook import weights


@chz.chz
class Settings:
    tinker_path: str
    model_name: str
    folder: str
    ids: list[int]


def score(settings: Settings) -> list[float]:
    """What the trainer says of each token after the first."""
    service = tinker.ServiceClient()
    model = service.create_training_client_from_state(settings.tinker_path).result()
    inputs = {"target_tokens": settings.ids[1:], "weights": [1.0] * (len(settings.ids) - 1)}
    prompt = tinker.ModelInput.from_ints(settings.ids[:-1])
    datum = tinker.Datum(model_input=prompt, loss_fn_inputs=inputs)
    output = model.forward([datum], "cross_entropy").result()
    service.close("success").result()
    return output.loss_fn_outputs[0]["logprobs"].tolist()


def export(settings: Settings) -> None:
    folder = Path(settings.folder)
    adapter = weights.download(tinker_path=settings.tinker_path, output_dir=str(folder / "adapter"))
    places = {"base_model": settings.model_name, "adapter_path": adapter}
    weights.build_hf_model(output_path=str(folder / "merged"), **places)
    weights.build_lora_adapter(output_path=str(folder / "peft"), **places)


settings = chz.entrypoint(Settings)
export(settings)
print(json.dumps(score(settings)))

"""What a checkpoint's folder says of itself, in a file that is written last. No torch.

A folder is one of three types.
adapter: adapter_model.safetensors and adapter_config.json, as PEFT has them.
base: a whole model as its base has it (config.json, tokenizer, *.safetensors of the same names and
    stored types), which transformers and vLLM load. A training checkpoint has beside it
    `master.state`, the float32 weights, where they are not what is stored.
delta: DELTA_FILE alone, the difference to the folder `previous` beside it, a base or a delta.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from training.errors import InvalidInput
from training.types import CheckpointType, LoraSpec, Optimizer, Probe

FORMAT = 1
TRACE_LENGTH = 16  # letters of a digest on its way
MANIFEST_FILE = "manifest.json"
DELTA_FILE = "weights.delta"
# Of whole models, in the format of safetensors; but loaders take every *.safetensors for weights.
MASTER_FILE = "master.state"
MOMENTS_FILE = "optimizer.state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a folder holds. An adapter's digests are of tensors, a whole model's of files."""

    digest: str
    optimizer_digest: str | None
    base_digest: str
    spec: LoraSpec
    step: int
    probe: Probe
    versions: Mapping[str, str]
    optimizer: Optimizer = "adamw"  # the run's; folders of before there were two do not say
    format: int = FORMAT
    type: CheckpointType = "adapter"
    files: Mapping[str, str] = field(default_factory=dict)  # sha256 of a whole model's, and deltas
    previous: str = ""  # a delta's: the name of the folder that it is the difference to
    previous_digest: str = ""  # and of that one's weights
    ratio: float | None = None  # a delta's bytes to those of all weights
    # Of an adapter, by tensor: how its digest begins, taken up to the end of that tensor. They say
    # which one was changed on disk.
    tensors: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_optimizer(self) -> bool:
        return self.optimizer_digest is not None


def read_manifest(folder: Path) -> Manifest:
    """InvalidInput where the folder is no complete checkpoint of a format that is known here."""
    if not (folder / MANIFEST_FILE).is_file():
        raise InvalidInput(f"{folder.name} is no complete checkpoint: {MANIFEST_FILE} is missing")
    try:
        fields = json.loads((folder / MANIFEST_FILE).read_text())
        if fields["format"] != FORMAT:
            raise InvalidInput(
                f"{folder.name} has the checkpoint format {fields['format']}, this version "
                f"reads {FORMAT}"
            )
        probe = Probe(**{key: tuple(values) for key, values in fields.pop("probe").items()})
        return Manifest(spec=LoraSpec(**fields.pop("spec")), probe=probe, **fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{folder.name} is damaged: {MANIFEST_FILE} cannot be read") from error

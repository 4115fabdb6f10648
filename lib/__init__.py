"""KV Lab: a laboratory for KV-cache compression. Public names, imported when first used."""

import importlib
import os
import sys

# Huge pages for large tensors: the logits of a chunk, 100 MB of SmolLM2's, are new memory each
# time, and 24,000 faults for it took a tenth of an evaluation. Read at torch's first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_PUBLIC = {
    "measure.attention_maps": ["attention_maps", "heads_with_sink", "sink_strength"],
    "cache.compressed": ["CompressedCache"],
    "compressors": [
        "AdaptiveL2",
        "Compressor",
        "FixSizeL2",
        "H2O",
        "H2OL2",
        "Held",
        "KVPress",
        "KeyDiff",
        "L2Compress",
        "LagKV",
        "Pyramid",
        "Random",
        "RecentOnly",
        "SnapKV",
        "StreamingLLM",
        "TOVA",
        "fix_size_l2_compress",
        "get_compress_fn",
        "l2_compress",
        "list_methods",
        "recent_only_compress",
        "streaming_llm_compress",
    ],
    "load.texts": ["load_tokens"],
    "measure.generation": ["Generation", "generate"],
    "cache.baseline": ["cache_bytes"],
    "load.models": ["load_model", "load_tokenizer"],
    "measure.chat": ["Chat"],
    "measure.perplexity": [
        "Evaluation",
        "evaluate",
        "evaluate_recompute",
        "evaluate_with_compression",
    ],
    "results.save": ["save_figure", "save_table"],
    "cache.streaming": ["disable_streaming_llm", "enable_streaming_llm"],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Import `name` from its module now: `import lib` alone stays free of torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'lib' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


if "ipykernel" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()) is not None:
    importlib.import_module(".run.session", __name__).install(_shell)

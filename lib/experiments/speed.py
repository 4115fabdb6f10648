"""What a token needs of named models: the sizes behind every speed."""

import pandas as pd
import torch

from lib.load.shapes import LLAMA_SHAPES, PYTHIA_SHAPES, random_model
from lib.measure.limits import cache_bytes_per_token, decoding_work

META = torch.device("meta")  # shapes without memory
KEPT = 512  # cached tokens for which FLOPs are told


def model_sizes() -> pd.DataFrame:
    """A row per named shape: parameters, and what a decoding step computes, reads and adds.

    `gflop_per_token` with `KEPT` cached tokens, of which `attention_%` are attention's;
    `weight_mib` read for each token; `kv_kib_per_token` that the cache grows by, and the tokens
    after which it is as large as the weights. Bytes are those of bfloat16.
    """
    rows = []
    for name in (*PYTHIA_SHAPES, *LLAMA_SHAPES):
        model = random_model(name, META, torch.bfloat16)
        work, each = decoding_work(model, KEPT - 1), cache_bytes_per_token(model)
        row = {"model": name, "parameters": sum(x.numel() for x in model.parameters())}
        row |= {"gflop_per_token": work.flops / 1e9}
        row |= {"attention_%": 100 * work.attention_flops / work.flops}
        row |= {"weight_mib": work.weight_bytes / 2**20, "kv_kib_per_token": each / 2**10}
        rows.append(row | {"tokens_as_large": work.weight_bytes // each})
    return pd.DataFrame(rows)

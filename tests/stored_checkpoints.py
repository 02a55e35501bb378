"""Tiny language models on disk, stored as those on the hub are."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from nodetok.language.vocabulary import train_tokenizer
from setrec.models.backbones import scratch_config

WORDS = "a user chose these items in order name the item that is chosen next which class has this answer b c d : ? ; ."


def stored_checkpoint(folder: Path, family: str, dtype: torch.dtype = torch.bfloat16) -> str:
    """The path of a two-layer checkpoint with a tokenizer, its weights of ``dtype`` in safetensors."""
    torch.manual_seed(5)
    tokenizer = train_tokenizer([WORDS])
    config = scratch_config(family, "tiny", 0.0, len(tokenizer))
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    kind.from_config(config, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)

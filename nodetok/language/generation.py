"""Text generation with the graph language model, by transformers' ``generate``.

The prompt is read under the same mask as for grounded answers. With a decoder-only backbone all of it but the last
token is read into a key-value cache first, because ``generate`` supports plain masks only; an encoder-decoder's encoder
reads all of it. Generated tokens attend to the prompt and to earlier generated tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from nodetok.language.model import GraphLanguageModel
from nodetok.language.prompts import PAD, NodeData, PromptBatch
from setrec.models.backbones import EncoderDecoderBackbone

IGNORED = -100


def answer_ids(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> Tensor:
    """Return token ids of the answers with their end token, int64 (B, A), padded with :data:`IGNORED`."""
    rows = [[*tokenizer(a, add_special_tokens=False)["input_ids"], _end(tokenizer)] for a in answers]
    width = max(map(len, rows))
    return torch.tensor([row + [IGNORED] * (width - len(row)) for row in rows], dtype=torch.int64)


def text_loss(model: GraphLanguageModel, batch: PromptBatch, data: NodeData, answers: Tensor) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens (B, A) given the prompt and the previous tokens."""
    vectors, sees, places, real, bias = _packed(model, batch, data)
    lm = cast(Any, model.lm)
    if not model.causal:
        reader = cast(EncoderDecoderBackbone, model.reader)
        states = reader.encode(vectors, sees, places, bias)
        with reader.speaking():
            loss: Tensor = lm(encoder_outputs=BaseModelOutput(states), attention_mask=real.long(), labels=answers).loss
            return loss
    count, width = answers.shape
    written = lm.get_input_embeddings()(answers[:, :-1].clamp(min=0)).to(vectors.dtype)
    whole = torch.cat([vectors, written], dim=1)
    h, total = vectors.shape[1], whole.shape[1]
    mask = sees.new_zeros(count, total, total)
    mask[:, :h, :h] = sees
    mask[:, h:, :h] = real[:, None, :]
    mask[:, h:, h:] = torch.ones(width - 1, width - 1, dtype=torch.bool, device=mask.device).tril()
    whole_mask = mask[:, None]
    if bias is not None:
        bias = torch.nn.functional.pad(bias, (0, width - 1, 0, width - 1))
        whole_mask = bias.masked_fill(~whole_mask, torch.finfo(bias.dtype).min)
    after = places[:, -1:] + 1 + torch.arange(width - 1, device=places.device)
    out = lm(inputs_embeds=whole, attention_mask=whole_mask, position_ids=torch.cat([places, after], dim=1))
    logits = out.logits[:, h - 1 :].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def write(
    model: GraphLanguageModel,
    batch: PromptBatch,
    data: NodeData,
    tokenizer: PreTrainedTokenizerBase,
    longest: int = 32,
) -> list[str]:
    """Generate answers greedily, at most ``longest`` tokens each."""
    vectors, sees, places, real, bias = _packed(model, batch, data)
    lm = cast(Any, model.lm)
    common = {
        "attention_mask": real.long(), "max_new_tokens": longest, "do_sample": False, "num_beams": 1,
        "eos_token_id": _end(tokenizer), "pad_token_id": tokenizer.pad_token_id or 0,
    }  # fmt: skip
    if not model.causal:
        reader = cast(EncoderDecoderBackbone, model.reader)
        states = reader.encode(vectors, sees, places, bias)
        with reader.speaking():
            ids = lm.generate(encoder_outputs=BaseModelOutput(states), **common)[:, 1:]
    else:
        cache = DynamicCache(config=lm.config)
        mask = sees[:, None]
        if bias is not None:
            mask = bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
        lm.base_model(
            inputs_embeds=vectors[:, :-1], attention_mask=mask[:, :, :-1, :-1], position_ids=places[:, :-1],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        ids = lm.generate(inputs_embeds=vectors, position_ids=places, past_key_values=cache, **common)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(cast(int, tokenizer.eos_token_id))


def _packed(
    model: GraphLanguageModel, batch: PromptBatch, data: NodeData
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return vectors, mask, positions, padding mask and bias, with the padding on the left as ``generate`` expects
    it."""
    vectors, sees, places, bias = model.read(batch, data)
    a = model.settings.soft_prompt
    real = torch.cat([batch.kinds.new_ones(len(vectors), a) > 0, batch.kinds != PAD], dim=1)
    # By position: the last token is then the last word, which sees all earlier ones under any mask.
    order = torch.argsort(torch.where(real, places, -1), dim=1, stable=True)
    rows = torch.arange(len(vectors), device=order.device)[:, None]
    across = (rows[..., None], order[:, :, None], order[:, None, :])
    if bias is not None:
        bias = bias.permute(0, 2, 3, 1)[across].permute(0, 3, 1, 2)
    return vectors[rows, order], sees[across], torch.where(real, places, 0)[rows, order], real[rows, order], bias

"""Simultaneous generation against constrained beam search: users per second from history to ranked items.

Same backbone size (T5-small: 6 + 6 layers, width 512, 8 heads), same histories, same catalogue of 12,101 items, same
threads. Ours encodes the history, answers all slots in one decoder pass and finds the ten best items by the folded
inner product over the whole catalogue. The opponent is what semantic-id recommenders do: four tokens an item,
transformers' ``generate`` with 20 beams and a key-value cache, held to existing items by a trie kept as arrays (faster
than the usual callback over Python dictionaries); each at the best of several batch sizes. ``fused`` reads one vector
per history item, which is our default, ``set`` one per slot (five), as the paper does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from harness import measure, median, print_table, write_results
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, T5Config, T5ForConditionalGeneration

from setrec.models.configuration import SetRecConfig
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged

ITEMS, CODES, LEVELS, BEAMS, K = 12_101, 256, 4, 20, 10

SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8}
BATCHES = {9: (4, 16, 64), 50: (4, 16)}


def semantic_ids(seed: int = 0) -> np.ndarray:
    """Unique ids (I, 4), codes skewed as residual quantisation leaves them; each level has its own 256 tokens."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, CODES + 1) ** 0.5
    drawn = rng.choice(CODES, size=(3 * ITEMS, LEVELS), p=weights / weights.sum())
    unique = np.unique(drawn, axis=0)
    return rng.permutation(unique)[:ITEMS]


class Trie(LogitsProcessor):
    """Allows only the tokens that continue some item's id; prefixes are looked up by binary search."""

    def __init__(self, ids: np.ndarray) -> None:
        self.levels = []
        for depth in range(LEVELS):
            prefixes, owner = np.unique(self.key(ids[:, :depth]), return_inverse=True)
            allowed = np.zeros((len(prefixes), CODES), dtype=bool)
            allowed[owner, ids[:, depth]] = True
            self.levels.append((torch.from_numpy(prefixes), torch.from_numpy(allowed)))

    @staticmethod
    def key(codes: np.ndarray) -> np.ndarray:
        """One integer per prefix."""
        total = np.zeros(len(codes), dtype=np.int64)
        for column in codes.T:
            total = total * CODES + column
        return total

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Minus infinity for tokens that continue no item."""
        depth = input_ids.shape[1] - 1
        codes = input_ids[:, 1:] - 2 - CODES * torch.arange(depth)
        key = torch.zeros(len(codes), dtype=torch.int64)
        for column in codes.T:
            key = key * CODES + column
        prefixes, allowed = self.levels[depth]
        row = torch.searchsorted(prefixes, key).clamp(max=len(prefixes) - 1)
        # A beam may already be dead (probability zero); its prefix then is no item's.
        alive = (prefixes[row] == key)[:, None] & allowed[row]
        start = 2 + CODES * depth
        out = torch.full_like(scores, float("-inf"))
        out[:, start : start + CODES] = scores[:, start : start + CODES].masked_fill(~alive, float("-inf"))
        return out


def opponent(histories: np.ndarray, batch: int, constrained: bool) -> Callable[[], float]:
    """Users per second of beam search over semantic ids."""
    torch.manual_seed(0)
    ids = semantic_ids()
    config = T5Config(vocab_size=2 + LEVELS * CODES, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **SMALL)
    model = T5ForConditionalGeneration(config).eval()
    tokens = torch.from_numpy((ids + 2 + CODES * np.arange(LEVELS))[histories].reshape(len(histories), -1))
    processors = LogitsProcessorList([Trie(ids)] if constrained else [])

    @torch.inference_mode()
    def run() -> float:
        began = time.perf_counter()
        out = model.generate(
            tokens[:batch], num_beams=BEAMS, num_return_sequences=K, min_new_tokens=LEVELS, max_new_tokens=LEVELS,
            do_sample=False, use_cache=True, logits_processor=processors,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        if constrained:
            found = (out[:, 1:] - 2 - CODES * torch.arange(LEVELS)).numpy()
            assert np.isin(Trie.key(found), Trie.key(ids)).all(), "beam search left the catalogue"
        return batch / seconds

    return run


def ours(histories: np.ndarray, batch: int, history: str) -> Callable[[], float]:
    """Users per second of simultaneous generation, grounding in the whole catalogue included."""
    torch.manual_seed(0)
    backbone = T5Config(vocab_size=1, decoder_start_token_id=0, pad_token_id=0, eos_token_id=0, **SMALL).to_dict()
    model = SetRecModel(SetRecConfig(items=ITEMS, backbone=backbone, history=history, semantic_tokens=4)).eval()
    with torch.no_grad():
        for part in model.tokens.parts.values():
            getattr(part, "table", getattr(part, "features", None)).normal_()
    codes, weights = model.item_codes(), dict.fromkeys(model.kinds, 1.0)
    rows = Ragged.of(list(histories[:batch]))

    @torch.inference_mode()
    def run() -> float:
        began = time.perf_counter()
        torch.topk(model.user_codes(rows, weights, codes) @ codes.T, K)
        return batch / (time.perf_counter() - began)

    return run


def compare(length: int) -> dict[str, float]:
    """Print the table for histories of one length; returns the users per second of each kind at its best batch size."""
    histories = np.random.default_rng(0).integers(0, ITEMS, (max(BATCHES[length]), length))
    variants: dict[str, Callable[[], float]] = {}
    for batch in BATCHES[length]:
        variants[f"fused, batch {batch}"] = ours(histories, batch, "fused")
        variants[f"set, batch {batch}"] = ours(histories, batch, "set")
        variants[f"beam, batch {batch}"] = opponent(histories, batch, constrained=True)
        variants[f"free beam, batch {batch}"] = opponent(histories, batch, constrained=False)
    found = measure(variants, repeats=3)
    reference = max((n for n in found if n.startswith("beam")), key=lambda n: median(found[n]))
    print_table(f"Histories of {length} items, {ITEMS:,} items, T5-small", "users/s", found, reference)
    return {
        kind: max(median(values) for name, values in found.items() if name.startswith(f"{kind},"))
        for kind in ("fused", "set", "beam", "free beam")
    }


def main() -> None:
    """Nine items, the mean length of Amazon Beauty's test histories, and fifty, the longest that papers read."""
    torch.set_num_threads(2)
    short, long = (compare(length) for length in BATCHES)
    write_results(
        "simultaneous",
        {
            "simultaneous_over_beam": short["fused"] / short["beam"],
            "simultaneous_set_over_beam": short["set"] / short["beam"],
            "simultaneous_over_free_beam": short["fused"] / short["free beam"],
            "simultaneous_over_beam_50_items": long["fused"] / long["beam"],
            "simultaneous_set_over_beam_50_items": long["set"] / long["beam"],
            "simultaneous_users_per_second": short["fused"],
            "beam_users_per_second": short["beam"],
        },
    )


if __name__ == "__main__":
    main()

"""Texts to vectors with any sentence-transformers style encoder, and a cache on disk so that each text is read once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setrec.errors import ConfigError
from setrec.text.vector_store import VectorCache

Progress = Callable[[int, int], None]

log = logging.getLogger(__name__)

_SHARD = 4096  # texts per cache file: what a killed run loses at most


class TextEncoder:
    """A transformers encoder with mean pooling over the attention mask.

    ``path_or_hub_id`` is a directory with safetensors weights and a tokenizer, or a hub id. Of an encoder-decoder
    (T5) the encoder is used. ``max_length`` cuts texts, in tokens; with ``normalize`` vectors have length 1.
    The model is loaded when the first text that no cache holds arrives.

    all-MiniLM-L6-v2 on two CPU cores: about 300 titles or 100 long texts a second; batches beyond 64 gain nothing.
    """

    def __init__(
        self,
        path_or_hub_id: str | Path,
        batch_size: int = 64,
        max_length: int = 256,
        *,
        normalize: bool = True,
        device: str | None = None,
    ) -> None:
        if batch_size < 1 or max_length < 1:
            raise ConfigError("batch_size and max_length must be at least 1")
        self.name = str(path_or_hub_id)
        self.batch_size = batch_size
        self.max_length = max_length
        self.normalize = normalize
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def encode(
        self, texts: Sequence[str], cache_dir: str | Path | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """Vectors, float32 (len(texts), width), in the order of ``texts``.

        With ``cache_dir`` texts encoded before by the same model, weights and settings are read from there and new
        ones are added. ``progress(done, total)`` counts distinct texts. The result does not depend on the order of
        the texts; how they share batches can move it by rounding (about 1e-6).

        Raises:
            ConfigError: the encoder cannot be loaded or gives numbers that are not finite.
        """
        if len(texts) == 0:
            return np.empty((0, self.width), dtype=np.float32)
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        distinct = dict(zip(keys, texts, strict=True))
        cache = VectorCache(Path(cache_dir) / self.identity) if cache_dir is not None else None
        known = cache.read(distinct) if cache is not None else {}
        # Longest first: the slowest and largest batch comes first, so memory and the time left show early. The text
        # itself breaks ties, so the batches do not depend on the order asked for.
        missing = sorted((key for key in distinct if key not in known), key=lambda k: (-len(distinct[k]), distinct[k]))
        done = len(known)
        _tell(progress, done, len(distinct))
        for start in range(0, len(missing), _SHARD):
            fresh: dict[bytes, np.ndarray] = {}
            shard = missing[start : start + _SHARD]
            for first in range(0, len(shard), self.batch_size):
                batch = shard[first : first + self.batch_size]
                fresh.update(zip(batch, self._batch([distinct[key] for key in batch]), strict=True))
                _tell(progress, done := done + len(batch), len(distinct))
            if cache is not None:
                cache.write(fresh)
            known.update(fresh)
        return np.stack([known[key] for key in keys])

    @property
    def width(self) -> int:
        """Numbers per vector."""
        return int(self._config.get_text_config().hidden_size)

    @cached_property
    def identity(self) -> str:
        """A hash of everything a vector depends on besides its text: weights, tokenizer, pooling, settings."""
        digest = hashlib.sha256(json.dumps(["mean", self.max_length, self.normalize]).encode())
        for path in sorted(self.directory.iterdir()):
            if path.suffix in (".safetensors", ".json", ".txt", ".model") and path.is_file():
                with open(path, "rb") as content:
                    digest.update(f"{path.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode())
        return digest.hexdigest()[:32]

    @cached_property
    def directory(self) -> Path:
        """Where the encoder's files lie; a hub id is fetched into the hub's own cache first.

        Raises:
            ConfigError: it is neither a directory nor a hub id at hand.
        """
        if Path(self.name).is_dir():
            return Path(self.name)
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))
        except Exception as error:  # the hub client raises many kinds; all mean the same here
            raise ConfigError(f"text encoder {self.name}: neither a directory nor a hub id at hand") from error

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return self._load(AutoConfig)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = self._load(AutoTokenizer)
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _model(self) -> torch.nn.Module:
        from transformers import AutoModel

        _warn_of_unused_modules(self.directory)
        model = self._load(AutoModel, use_safetensors=True, dtype=torch.float32)
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        return model.eval().requires_grad_(False).to(self.device)

    def _load(self, kind: Any, **options: Any) -> Any:
        try:
            with _no_progress_bar():
                return kind.from_pretrained(self.directory, local_files_only=True, **options)
        except Exception as error:  # damaged weights, configurations and tokenizers raise many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"text encoder {self.name}: cannot be loaded ({reason})") from error

    @torch.inference_mode()
    def _batch(self, texts: list[str]) -> np.ndarray:
        """Vectors of one batch, (b, width)."""
        limit = min(self.max_length, self._tokenizer.model_max_length)
        # A blank for nothing: some tokenizers make no token of an empty text, and a model cannot read none.
        batch = self._tokenizer(
            [text or " " for text in texts], padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        batch = {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}
        hidden = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        vectors = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        if not torch.isfinite(vectors).all():
            raise ConfigError(f"text encoder {self.name}: gives numbers that are not finite")
        return vectors.float().cpu().numpy()


def _warn_of_unused_modules(directory: Path) -> None:
    """Say so where the encoder was made for more than mean pooling (another pooling, a dense layer on top)."""
    pooling = _json(directory / "1_Pooling" / "config.json")
    if pooling and not pooling.get("pooling_mode_mean_tokens", True):
        log.warning("text encoder %s was trained with another pooling; mean pooling is used", directory)
    modules = _json(directory / "modules.json") or []
    if any(str(module.get("type", "")).endswith(".Dense") for module in modules):
        log.warning("text encoder %s has a dense layer after pooling; it is not applied", directory)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading takes a moment; a bar per load would tear the caller's own."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)

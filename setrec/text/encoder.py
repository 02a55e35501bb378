"""Text vectors by sentence-transformers, with a cache on disk so that each text is encoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setrec.errors import ConfigError, first_line
from setrec.text.vector_store import VectorCache

Progress = Callable[[int, int], None]

SUFFIXES = (".safetensors", ".json", ".txt", ".model")
"""File types of a checkpoint that are read."""
_SHARD = 4096  # texts per cache file: the maximum loss of a killed run


class TextEncoder:
    """A sentence encoder with a cache; pooling, dense layers and prompts are those of the checkpoint.

    A checkpoint of transformers alone is mean-pooled over its attention mask; of an encoder-decoder (T5) the encoder
    is used. The model is loaded when the first text arrives that is not in the cache. all-MiniLM-L6-v2 encodes about
    300 titles or 100 long texts a second on two CPU cores; batches larger than 64 are not faster.

    Args:
        path_or_hub_id: Directory with safetensors weights and a tokenizer, or hub id.
        max_length: Maximum number of tokens; longer texts are truncated.
        normalize: Scale vectors to length 1.
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
        """Return vectors, float32 (len(texts), width), in the order of ``texts``.

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
        # itself breaks ties, so the batches do not depend on the order of ``texts``.
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
        """Dimension of the vectors."""
        return int(self.model.get_embedding_dimension())

    @cached_property
    def identity(self) -> str:
        """Hash of everything a vector depends on except its text: weights, tokenizer, modules and settings."""
        digest = hashlib.sha256(json.dumps([self.max_length, self.normalize]).encode())
        for path in self.files:
            with open(path, "rb") as content:
                name = path.relative_to(self.directory).as_posix()
                digest.update(f"{name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode())
        return digest.hexdigest()[:32]

    @property
    def files(self) -> list[Path]:
        """Return the files of the checkpoint, without types that can contain code."""
        return sorted(path for path in self.directory.rglob("*") if path.suffix in SUFFIXES and path.is_file())

    @cached_property
    def directory(self) -> Path:
        """Directory of the checkpoint; a hub id is downloaded into the hub's own cache first.

        Raises:
            ConfigError: it is neither a directory nor an available hub id.
        """
        if Path(self.name).is_dir():
            return Path(self.name)
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.name, allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
        except Exception as error:  # the hub client raises many types; all mean the same here
            raise ConfigError(f"text encoder {self.name}: neither a directory nor an available hub id") from error

    @cached_property
    def model(self) -> Any:
        """The loaded model of sentence-transformers, frozen and in evaluation mode."""
        from sentence_transformers import SentenceTransformer

        if pickled := [path for path in self.directory.glob("*/pytorch_model.bin") if not _has_safetensors(path)]:
            raise ConfigError(f"text encoder {self.name}: {pickled[0].name} is a pickle; safetensors are needed")
        options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
        try:
            with no_progress_bar():
                model: Any = SentenceTransformer(
                    str(self.directory), device=str(self.device), local_files_only=True, model_kwargs=options
                )
        except Exception as error:  # damaged weights, configurations and tokenizers raise many types
            raise ConfigError(f"text encoder {self.name}: cannot be loaded ({first_line(error)})") from error
        model.max_seq_length = min(self.max_length, model.max_seq_length or self.max_length)
        if model.tokenizer.pad_token is None:
            model.tokenizer.pad_token = model.tokenizer.eos_token
        return model.requires_grad_(False)

    def _batch(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of one batch, (b, width)."""
        # Some tokenizers return no token for an empty text, which a model cannot read.
        vectors = self.model.encode(
            [text or " " for text in texts], batch_size=len(texts), normalize_embeddings=self.normalize,
            show_progress_bar=False,
        )  # fmt: skip
        if not np.isfinite(vectors).all():
            raise ConfigError(f"text encoder {self.name}: vectors are not finite")
        return np.asarray(vectors, dtype=np.float32)


def _has_safetensors(weights: Path) -> bool:
    return (weights.parent / "model.safetensors").is_file()


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hide the progress bars of transformers, which would break the caller's own."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)

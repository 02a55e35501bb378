"""Hashes of what the parts of a run were made from, in ``run.json``, and checks that the parts are consistent.

A job makes a part again, or refuses it, if it was made from other data, settings or weights.
"""

from __future__ import annotations

from pipelines.common.fingerprints import of_value
from pipelines.common.run_directory import FOLLOWING, Run
from pipelines.config.job import JobConfig
from setrec.errors import ConfigError

COLLABORATIVE = "features/collaborative.safetensors"
WORDS = "features/words.safetensors"
_SHAPE, _TRAINING = ("model", "loss"), ("model", "loss", "training")


def of_data(run: Run) -> str:
    """Return the hash of a data directory: settings, inputs and counts, and names and sizes of its files."""
    files = [path for path in sorted(run.data.rglob("*")) if path.is_file()]
    sizes = [[str(path.relative_to(run.data)), path.stat().st_size] for path in files]
    return of_value([run.read_json("data/data.json"), sizes])


def of_sasrec(run: Run, config: JobConfig) -> dict[str, str]:
    """Return the hashes of what the collaborative model and its vectors are made from."""
    settings = [config.sasrec.model_dump(mode="json"), config.training.seed, str(config.warm_start)]
    return {"data": of_data(run), "settings": of_value(settings)}


def of_encoder(run: Run, config: JobConfig) -> dict[str, str]:
    """Return the hashes of what the fine-tuned sentence encoder is made from."""
    s = config.encoder
    settings = of_value([s.path, s.max_length, s.finetune.model_dump(mode="json")])
    return {"data": of_data(run), "settings": settings, "warm_start": str(config.warm_start)}


def fits(run: Run, name: str, parts: dict[str, str]) -> bool:
    """Return whether the entry ``name`` exists and, as far as recorded, was made from ``parts``."""
    return (run.root / name).exists() and run.made_from(name) in ({}, parts)


def begin_training(run: Run, config: JobConfig, *, resume: bool) -> None:
    """Record that a training has begun, and remove what was made from the previous model.

    Raises:
        ConfigError: ``resume`` is true, and the checkpoints are of other data or of another model.
    """
    parts, begun = _of_training(run, config), run.made_from("checkpoints")
    if resume and begun:
        for name in ("data", *_SHAPE):
            if begun.get(name) != parts[name]:
                raise ConfigError(
                    f"{run.root}: the training to resume had other settings of {name}: run `setrec train` again"
                )
    run.discard(*FOLLOWING)
    run.note_made_from("checkpoints", **parts)
    run.set_unfinished(True)


def end_training(run: Run, config: JobConfig) -> None:
    """Record that the model is that of the configuration."""
    run.note_made_from("model", **_of_training(run, config))
    run.set_unfinished(False)


def require_model(run: Run, config: JobConfig) -> str:
    """Return the hash of the trained model.

    Raises:
        ConfigError: there is none, or it was made from other data or settings than the run's, for example after a
            failed training.
    """
    run.require(run.model, "train")
    again = f"run `setrec train --run {run.root}`"
    if run.unfinished:
        raise ConfigError(
            f"{run.model} is of an earlier training, the last one did not end: {again}, with --resume or without"
        )
    made = run.made_from("model")
    parts = _of_training(run, config)
    if made and (other := [name for name in {**parts, **made} if made.get(name) != parts.get(name)]):
        raise ConfigError(f"{run.model} was made from other settings of {other[0]} than the run has now: {again}")
    return run.hash_of(run.model)


def _of_training(run: Run, config: JobConfig) -> dict[str, str]:
    sections = {name: of_value(getattr(config, name).model_dump(mode="json")) for name in _TRAINING}
    if config.encoder.finetune.epochs:
        sections["encoder"] = of_encoder(run, config)["settings"]
    return {"data": of_data(run), **sections}

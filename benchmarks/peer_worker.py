"""One model of one library on one task, in that library's own environment: started by ``bench_peers.py``.

    python peer_worker.py MODEL TASK.npz OUT.npz SECONDS

Nothing of this project is imported but by its own models, and of the libraries only the one that is asked for. ``TASK``
holds ``values`` and ``offsets`` of the users' training items in order, ``items``, the rows of the users ``asked`` for,
and our settings for a ``full`` and a ``sampled`` softmax. ``OUT`` gets, for each epoch of a fit of ``SECONDS`` CPU
seconds, those ``spent`` so far, ranking excluded, and ten items for each asked user (``lists``), best first and none of
the user's own, -1 where a list ends; ``ranking``, the CPU seconds of the fastest of these rankings; and ``memory``, the
process's largest, in MB. With 0 seconds a SASRec that takes minutes for an epoch is fitted for a step or none, which
leaves its ranking as it is.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

K, WIDTH, LENGTH, NEIGHBOURS, FACTORS, DROPOUT = 10, 64, 50, 100, 64, 0.3
REPEATS = 3
SMALL = 4096
"""Items up to which the softmax is over all of them."""


class Task:
    """The arrays of a task."""

    def __init__(self, path: str) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self.values, self.offsets, self.asked = (arrays[name] for name in ("values", "offsets", "asked"))
            self.items = int(arrays["items"])
            self.settings = {name: str(arrays[name]) for name in ("full", "sampled")}
        self.users = len(self.offsets) - 1
        self.row = np.repeat(np.arange(self.users), np.diff(self.offsets))

    def matrix(self) -> Any:
        """Users by items, ones, float32 (U, I)."""
        import scipy.sparse as sp

        ones = np.ones(len(self.values), np.float32)
        return sp.csr_matrix((ones, self.values, self.offsets), (self.users, self.items))

    def frame(self) -> Any:
        """A table of users, items and times that keep the order."""
        import pandas as pd

        times = pd.Timestamp(2000, 1, 1) + pd.to_timedelta(np.arange(len(self.values)), unit="s")
        return pd.DataFrame({"user_id": self.row, "item_id": self.values, "weight": 1.0, "datetime": times})

    def placed(self, users: np.ndarray, ranks: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Lists (asked, K) of the rows of a table; ``ranks`` from 0."""
        place = np.full(self.users, -1)
        place[self.asked] = np.arange(len(self.asked))
        lists = np.full((len(self.asked), K), -1)
        lists[place[users], ranks] = items
        return lists


class Recorder:
    """Keeps what a fit has come to after each epoch; ranking does not count as fitting."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began, self.ranked = seconds, 0.0, 0.0
        self.spent: list[float] = []
        self.lists: list[np.ndarray] = []
        self.ranking = float("inf")

    def begin(self) -> None:
        """Start the clock: libraries are loaded, data is not."""
        self.began = cpu()

    def __call__(self, recommend: Callable[[], np.ndarray]) -> bool:
        """Rank, and return whether the time is used up."""
        self.spent.append(cpu() - self.began - self.ranked)
        start = cpu()
        for _ in range(1 if self.lists else REPEATS):  # the first ranking loads or compiles code
            before = cpu()
            lists = recommend()
            self.ranking = min(self.ranking, cpu() - before)
        self.lists.append(np.asarray(lists, dtype=np.int32))
        self.ranked += cpu() - start
        return self.spent[-1] >= self.seconds


def cpu() -> float:
    """CPU seconds of this process and of its children."""
    return sum(os.times()[:4])


def setrec_sasrec(task: Task, record: Recorder) -> None:
    """With the settings of the benchmark."""
    from setrec.models.sasrec import SasRecSettings
    from setrec.training.sasrec_trainer import train_sasrec

    record.begin()
    histories, rank = _ours(task)
    settings = SasRecSettings.model_validate_json(task.settings["full" if task.items <= SMALL else "sampled"])

    def validate(score: Any) -> float:
        record(lambda: rank(score))
        return float(len(record.spent))  # the last epoch is the best: stopping is the driver's affair

    train_sasrec(histories, task.items, settings, seconds=record.seconds, validate=validate)


def setrec_itemknn(task: Task, record: Recorder) -> None:
    """Cosines of the nearest items, all items of a history alike."""
    from setrec.scoring.baselines import ItemKnn, ItemKnnSettings

    record.begin()
    histories, rank = _ours(task)
    settings = ItemKnnSettings(neighbours=NEIGHBOURS, shrink=0.0, decay=1.0, last=1 << 30)
    model = ItemKnn(histories, task.items, settings)
    record(lambda: rank(model))


def _ours(task: Task) -> tuple[Any, Callable[[Any], np.ndarray]]:
    from setrec.data.catalog import Histories
    from setrec.ragged import Ragged
    from setrec.rows import top_k

    rows = Ragged(task.values, task.offsets)

    def rank(score: Any) -> np.ndarray:
        lists = np.empty((len(task.asked), K), dtype=np.int32)
        order = np.argsort(rows.lengths[task.asked], kind="stable")  # histories of a batch are padded to the longest
        for places in np.array_split(order, max(1, len(order) // 64)):
            history = rows.take(task.asked[places])
            scores = score(history)
            scores[history.row_of_value, history.values] = -np.inf
            lists[places] = top_k(scores, K)
        return lists

    return Histories([str(user) for user in range(task.users)], rows, np.zeros(len(task.values), np.int8)), rank


def rectools_sasrec(task: Task, record: Recorder) -> None:
    """One layer; the softmax over all items, or over the target and 256 draws where there are many."""
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    _rectools_sasrec(task, record, Dataset, SASRecModel, "softmax" if task.items <= SMALL else "sampled_softmax")


def rectools_sasrec_full(task: Task, record: Recorder) -> None:
    """The softmax over all items."""
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    _rectools_sasrec(task, record, Dataset, SASRecModel, "softmax")


def _rectools_sasrec(task: Task, record: Recorder, dataset: Any, kind: Any, loss: str) -> None:
    for name in ("lightning", "pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    record.begin()
    few = {} if record.seconds else {"get_trainer_func": _one_step}
    model = kind(
        n_factors=WIDTH, n_blocks=1, n_heads=2, session_max_len=LENGTH, dropout_rate=DROPOUT, loss=loss,
        n_negatives=256, lr=1e-3, batch_size=128, epochs=1, recommend_torch_device="cpu", **few,
    )  # fmt: skip
    data = dataset.construct(task.frame())

    def recommend() -> np.ndarray:
        found = model.recommend(users=task.asked, dataset=data, k=K, filter_viewed=True)
        return task.placed(found["user_id"], found["rank"].to_numpy() - 1, found["item_id"].to_numpy())

    model.fit(data)
    while not record(recommend):
        model.fit_partial(data, min_epochs=1, max_epochs=1)


def _one_step() -> Any:
    from pytorch_lightning import Trainer

    return Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def rectools_itemknn(task: Task, record: Recorder) -> None:
    """implicit's ItemKNN behind RecTools."""
    from implicit.nearest_neighbours import CosineRecommender
    from rectools.dataset import Dataset
    from rectools.models import ImplicitItemKNNWrapperModel

    record.begin()
    data = Dataset.construct(task.frame())
    model = ImplicitItemKNNWrapperModel(CosineRecommender(K=NEIGHBOURS + 1)).fit(data)

    def recommend() -> np.ndarray:
        found = model.recommend(users=task.asked, dataset=data, k=K, filter_viewed=True)
        return task.placed(found["user_id"], found["rank"].to_numpy() - 1, found["item_id"].to_numpy())

    record(recommend)


def implicit_itemknn(task: Task, record: Recorder) -> None:
    """An item is its own first neighbour there."""
    from implicit.nearest_neighbours import CosineRecommender

    record.begin()
    seen = task.matrix()
    model = CosineRecommender(K=NEIGHBOURS + 1, num_threads=1)
    model.fit(seen, show_progress=False)
    _implicit(model, seen, task, record)


def implicit_als(task: Task, record: Recorder) -> None:
    """Alternating least squares, 15 iterations."""
    from implicit.cpu.als import AlternatingLeastSquares

    record.begin()
    seen = task.matrix()
    model = AlternatingLeastSquares(factors=FACTORS, iterations=15, num_threads=1, random_state=0)
    model.fit(seen, show_progress=False)
    _implicit(model, seen, task, record)


def _implicit(model: Any, seen: Any, task: Task, record: Recorder) -> None:
    def recommend() -> np.ndarray:
        lists, scores = model.recommend(task.asked, seen[task.asked], N=K, filter_already_liked_items=True)
        return np.where(scores > -1e30, lists, -1)

    record(recommend)


def lenskit_itemknn(task: Task, record: Recorder) -> None:
    """For implicit feedback, as many neighbours."""
    from lenskit.batch import recommend as in_batches
    from lenskit.data import from_interactions_df
    from lenskit.knn import ItemKNNScorer
    from lenskit.pipeline import topn_pipeline

    record.begin()
    frame = task.frame().rename(columns={"datetime": "timestamp"}).drop(columns="weight")
    model = topn_pipeline(ItemKNNScorer(max_nbrs=NEIGHBOURS, save_nbrs=NEIGHBOURS, feedback="implicit"))
    model.train(from_interactions_df(frame))

    def recommend() -> np.ndarray:
        found = in_batches(model, task.asked.tolist(), n=K, n_jobs=1)
        lists = np.full((len(task.asked), K), -1)
        place = {user: at for at, user in enumerate(task.asked.tolist())}
        for key, items in found.items():
            ids = items.ids()[:K]
            lists[place[int(key.user_id)], : len(ids)] = ids
        return lists

    record(recommend)


def recbole_sasrec(task: Task, record: Recorder) -> None:
    """One layer, the softmax over all items, a row for every prefix of a history."""
    import tempfile
    from pathlib import Path

    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer

    record.begin()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "task"
        place.mkdir()
        lines = ["user_id:token\titem_id:token\ttimestamp:float"]
        lines += [f"{u}\t{i}\t{t}" for t, (u, i) in enumerate(zip(task.row, task.values, strict=True))]
        (place / "task.inter").write_text("\n".join(lines) + "\n")
        config = Config(
            model="SASRec", dataset="task",
            config_dict={
                "data_path": folder, "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "use_gpu": False,
                "MAX_ITEM_LIST_LENGTH": LENGTH, "hidden_size": WIDTH, "inner_size": 4 * WIDTH, "n_layers": 1,
                "n_heads": 2, "hidden_dropout_prob": DROPOUT, "attn_dropout_prob": DROPOUT, "loss_type": "CE",
                "train_neg_sample_args": None, "learning_rate": 1e-3, "train_batch_size": 2048, "epochs": 1,
                "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "user", "mode": "full"},
                "show_progress": False, "state": "ERROR", "checkpoint_dir": folder, "seed": 0, "reproducibility": True,
            },
        )  # fmt: skip
        data = create_dataset(config)
        train, *_ = data_preparation(config, data)
        model = SASRec(config, train.dataset)
        trainer = Trainer(config, model)
        ids = data.field2id_token["item_id"]
        own = np.array([int(name) if name != "[PAD]" else -1 for name in ids])
        row_of = {int(name): row for row, name in enumerate(ids) if name != "[PAD]"}
        rows = [
            np.array([row_of[i] for i in task.values[a:b][-LENGTH:]])
            for a, b in zip(task.offsets[task.asked], task.offsets[task.asked + 1], strict=True)
        ]
        everything = [
            np.array([row_of[i] for i in task.values[a:b]])
            for a, b in zip(task.offsets[task.asked], task.offsets[task.asked + 1], strict=True)
        ]

        def recommend() -> np.ndarray:
            model.eval()
            lists = np.full((len(rows), K), -1)
            for start in range(0, len(rows), 1024):
                part = rows[start : start + 1024]
                items = torch.zeros(len(part), LENGTH, dtype=torch.long)
                for at, one in enumerate(part):
                    items[at, : len(one)] = torch.from_numpy(one)
                lengths = torch.tensor([len(one) for one in part])
                with torch.no_grad():
                    scores = model.full_sort_predict({"item_id_list": items, "item_length": lengths})
                scores = scores.view(len(part), -1)
                scores[:, 0] = -torch.inf
                for at in range(len(part)):
                    scores[at, torch.from_numpy(everything[start + at])] = -torch.inf
                lists[start : start + len(part)] = own[scores.topk(K, dim=1).indices.numpy()]
            return lists

        over = False
        while not over:
            model.train()
            if record.seconds:
                trainer._train_epoch(train, 0, show_progress=False)
            over = record(recommend)


MODELS: dict[str, Callable[[Task, Recorder], None]] = {
    "setrec_sasrec": setrec_sasrec,
    "rectools_sasrec": rectools_sasrec,
    "rectools_sasrec_full": rectools_sasrec_full,
    "recbole_sasrec": recbole_sasrec,
    "setrec_itemknn": setrec_itemknn,
    "rectools_itemknn": rectools_itemknn,
    "implicit_itemknn": implicit_itemknn,
    "lenskit_itemknn": lenskit_itemknn,
    "implicit_als": implicit_als,
}


def peak_mb() -> float:
    """Return the largest memory of this process; ``ru_maxrss`` would be at least that of the one that started it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def main() -> None:
    """Fit and write what was recorded."""
    warnings.filterwarnings("ignore")
    name, task, out, seconds = sys.argv[1:]
    given, record = Task(task), Recorder(float(seconds))
    MODELS[name](given, record)
    np.savez(
        out, spent=np.array(record.spent), lists=np.stack(record.lists), ranking=record.ranking,
        memory=peak_mb(),
    )  # fmt: skip


if __name__ == "__main__":
    main()

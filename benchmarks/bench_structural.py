"""What semantic and structural slots add on MovieLens-100K, a fifth of the films unknown to training.

Leave-one-out of MovieLens-100K has three cold test cases. So a fifth of the films lose all training interactions: the
cold group. Each set of slots is trained for itself, with the same data, collaborative vectors, epochs and seeds.
"""

from __future__ import annotations

from pathlib import Path

from harness import write_results
from rich.console import Console

from pipelines.common.run_directory import Run
from pipelines.features import preparation
from pipelines.jobs import stages
from pipelines.jobs.demo import demo_config
from pipelines.reports.terminal import difference_table, ranking_table

SETTINGS = ("data.cold_share=0.2", "structural.enabled=true", "sasrec.epochs=20", "training.epochs=8")
SEEDS = 2


def main() -> None:
    """Prepare, train every variant, print the tables and write the figures."""
    run, config = Run(Path("runs/bench_structural")), demo_config(8000, list(SETTINGS))
    run.clear()
    preparation.prepare(run, config)
    found = stages.ablate(run, config, SEEDS)
    Console().print(ranking_table(found["rows"]), difference_table(found["differences"]))
    figures = {
        f"{row['metric']}, {row['group']}, {row['system']}": row["value"]
        for row in found["rows"]
        if row["history"] == "removed" and row["metric"] in ("ndcg@10", "recall@10")
    }
    for row in found["differences"]:
        name = f"{row['metric']}, {row['group']}, {row['system']} minus {row['against']}"
        figures |= {name: row["difference"], f"{name}, low": row["low"], f"{name}, high": row["high"]}
    write_results("structural", figures)


if __name__ == "__main__":
    main()

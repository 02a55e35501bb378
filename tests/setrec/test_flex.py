"""The attention that ``benchmarks/bench_gpu.py`` compares with gives the same answers as the one in use.

Gradients cannot be compared here: PyTorch's flex attention has none on processors.
"""

import bench_gpu
import flex
import pytest
import torch
from small_models import small_model


@torch.no_grad()
@pytest.mark.parametrize(("family", "history"), [("qwen2", "set"), ("t5", "set"), ("t5", "fused")])
def test_flex_attention_gives_the_same_answers(features, family, history):
    items, visible = torch.tensor([[3, 5, 7, 1], [2, 4, 0, 0]]), torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
    model = small_model(features, family, history, max_items=6)
    ours = model.outputs(items, visible)
    torch.testing.assert_close(flex.use_flex(model).outputs(items, visible), ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("T5-base", {"num_layers": 1, "num_decoder_layers": 1, "d_model": 24, "d_ff": 32, "num_heads": 2, "d_kv": 12}),
        ("Qwen-0.5B", {"num_hidden_layers": 1, "hidden_size": 28, "intermediate_size": 32, "num_attention_heads": 2,
                       "num_key_value_heads": 1}),
    ],
)  # fmt: skip
def test_the_benchmark_measures_every_job_that_the_device_can_do(name, changes, monkeypatch):
    monkeypatch.setattr(bench_gpu, "ITEMS", 50)
    device = torch.device("cpu")
    found = bench_gpu.compare(name, bench_gpu.Shape(2, 4, "fused"), device, bench_gpu.ceiling(device, 64), changes)
    assert set(found) == {"training, sdpa", "generation, sdpa", "generation, flex"}
    assert all(row["tokens_per_second"] > 0 and row["share_of_ceiling"] > 0 for row in found.values())
    assert found["generation, sdpa"]["tokens_per_second"] > found["generation, sdpa"]["histories_per_second"]

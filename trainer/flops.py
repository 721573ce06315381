"""How much arithmetic a training step needs, and how much the device could do: their ratio is the MFU."""

import time

import torch

# Dense peak of the matrix units, in FLOP/s, from the makers' data sheets: {part of the name: (bf16/fp16, fp32)}.
GPU_PEAKS = {
    "B200": (2250e12, 75e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "H800": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A800": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "A10": (125e12, 31.2e12),
    "RTX 4090": (165e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}


def flops_per_token(cfg, T):
    """Forward and backward FLOP for one token in a row of T.

    6 per weight that works on the token (2 forward, 4 backward) and 12 L C T for attention, causality not taken off
    (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Reading the embedding costs nothing; the output matrix does.
    """
    attention = cfg.dim * cfg.head_dim * (2 * cfg.n_heads + 2 * cfg.n_kv_heads)
    experts = cfg.num_experts_per_tok + cfg.n_shared_experts if cfg.use_moe else 1
    router = cfg.dim * cfg.n_routed_experts if cfg.use_moe else 0
    weights = cfg.n_layers * (attention + experts * 3 * cfg.dim * cfg.hidden_dim + router) + cfg.vocab_size * cfg.dim
    return 6 * weights + 12 * cfg.n_layers * cfg.dim * T


def peak_flops(device, dtype):
    """FLOP/s of the device's matrix units in `dtype`: the maker's figure for a known GPU, else a short measurement."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, (half, single) in GPU_PEAKS.items():
            if part in name:
                return single if dtype == torch.float32 else half
    return measure_matmul(device, dtype)


def measure_matmul(device, dtype, rounds=4):
    """FLOP/s of a square matrix product, the best of a few."""
    size = 8192 if device.type == "cuda" else 1024  # long enough that starting it is nothing
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    best = float("inf")
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        a @ b
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best

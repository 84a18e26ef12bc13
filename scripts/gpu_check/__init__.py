"""The parts of scripts/gpu-check. Standard library only: it runs wherever PyTorch does."""

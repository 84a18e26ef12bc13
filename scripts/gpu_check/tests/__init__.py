"""Tests of scripts/gpu-check, which drive the real runner against programs that stand in for ours and PyTorch's."""

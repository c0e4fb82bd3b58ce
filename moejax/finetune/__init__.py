"""Fine-tuning a part of a model: chosen slices, low-rank updates, adapters, scores of experts."""

"""The one training loop: fine-tuning, recovery, dynamic sparsity; distillation from the dense model."""

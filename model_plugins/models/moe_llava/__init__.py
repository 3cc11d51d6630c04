"""MoE-LLaVA in its authors' checkpoint format: image tower, two-layer projector, decoder with MoE layers."""

"""MoE-LLaVA in its authors' checkpoint format: CLIP tower, two-layer projector, decoder with MoE layers."""

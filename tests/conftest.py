"""Settings that every vLLM process of the tests needs, and Triton kernels that run without a GPU."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ALLOW_INSECURE_SERIALIZATION="1",  # lets a test look into the model with a function of its own
    # The models are tiny, and tests run side by side: threads would wait for each other at every op.
    OMP_NUM_THREADS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
)

# Triton chooses its interpreter when kernels are imported; the engines' processes must not get this.
os.environ["TRITON_INTERPRET"] = "1"
import prismoe.kernels.triton_expert_load
import prismoe.kernels.triton_experts
import prismoe.kernels.triton_mixture
import prismoe.kernels.triton_router  # noqa: F401

del os.environ["TRITON_INTERPRET"]

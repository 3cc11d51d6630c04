"""Settings that every vLLM process of the tests needs."""

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

"""vLLM's entry point (`vllm.general_plugins`): runs once per process and registers the model without loading it."""

from __future__ import annotations

ARCHITECTURE = "RefDiffForConditionalGeneration"
VLLM = "0.32.0"  # the hooks of processing.py are not public: another version may call them differently


def register() -> None:
    """Register the RefDiff model with vLLM and transformers. Raises RuntimeError for another version of vLLM."""
    import vllm
    from vllm import ModelRegistry

    from refdiff.model.language import configuration  # noqa: F401  (it registers "refdiff" with AutoConfig)

    if vllm.__version__.partition("+")[0] != VLLM:
        raise RuntimeError(f"the RefDiff plugin was made for vllm {VLLM}, this is {vllm.__version__}; run: make vllm")
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"refdiff.server.vllm_plugin.network:{ARCHITECTURE}")

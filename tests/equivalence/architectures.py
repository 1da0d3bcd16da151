"""Tiny architectures, and by hand what each of their tensors is: the expectation that `amatax.planning` has no part in.

Every name that transformers writes has to be claimed here exactly once; a name that nobody claims fails the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

VOCABULARY = 128
IMAGE = 127  # the placeholder token of multimodal models

Stacks = tuple[tuple[str, int], ...]
Names = tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """How to build one, and what its tensors are on disk.

    Attributes:
        build: () -> (config, name of the model class in transformers).
        stacks: (prefix, layers) in layer order; an encoder's before the decoder's.
        layer_norms: names behind 'prefix.N.'; * for further numbers.
        embeddings: whole names (of a tied model only the position embeddings: the tied matrix is in `head`).
        head: whole names.
        norms: whole names, outside the layers.
        other: globs; towers, projectors and what else stands beside the backbone.
        holds: glob -> how many tensors the input must have, so that 'nothing lost' is about something.
        inputs: () -> arguments for a forward pass.
        dtype: of the checkpoints.
        float32: globs of tensors that are kept in float32, as DeepSeek keeps its routing bias.
        rlhf_shard, out_shard: max_shard_size of the RLHF model and of the output (the SFT model is one file).
        config_without: keys that config.json lacks, as older versions of transformers left them out.
        own_process: run the command line in a process of its own.
    """

    build: Callable[[], tuple[Any, str]]
    stacks: Stacks
    layer_norms: Names
    embeddings: Names = ()
    head: Names = ()
    norms: Names = ()
    other: Names = ()
    holds: Mapping[str, int] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Any]] = lambda: {"input_ids": _ids()}
    dtype: str = "bfloat16"
    float32: Names = ()
    rlhf_shard: str = "5GB"
    out_shard: str = "5GB"
    config_without: Names = ()
    own_process: bool = False

    @property
    def layers(self) -> int:
        return sum(count for _, count in self.stacks)

    def claims(self, name: str) -> list[tuple[str, int | None]]:
        """Every (kind, layer) that the table gives a name: one, or the table is wrong."""
        found: list[tuple[str, int | None]] = []
        first = 0
        for prefix, count in self.stacks:
            number, _, inner = name.removeprefix(prefix).partition(".")
            if name.startswith(prefix) and number.isdigit() and int(number) < count:
                norm = any(fnmatchcase(inner, pattern) for pattern in self.layer_norms)
                found.append(("norm" if norm else "block", first + int(number)))
            first += count
        for kind, names in (("embedding", self.embeddings), ("head", self.head), ("norm", self.norms)):
            if name in names:
                found.append((kind, None))
        if any(fnmatchcase(name, pattern) for pattern in self.other):
            found.append(("other", None))
        return found


# ---------------------------------------------------------------------------------------------------- shared pieces

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT_SIZES = {key: SIZES[key] for key in list(SIZES)[:5]} | {"max_position_embeddings": 64}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,  # as many as the language model: the count alone must not decide
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

PRE_POST = ("input_layernorm.weight", "post_attention_layernorm.weight")
PRE_POST_BIASED = (*PRE_POST, "input_layernorm.bias", "post_attention_layernorm.bias")
QK = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
GEMMA = (*PRE_POST, "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
LN_1_2 = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")
BERT_POSITIONS = ("bert.embeddings.position_embeddings.weight", "bert.embeddings.token_type_embeddings.weight")
BERT_HEAD = (
    "bert.embeddings.word_embeddings.weight",
    "cls.predictions.bias",
    "cls.predictions.transform.dense.weight",
    "cls.predictions.transform.dense.bias",
)
BERT_LAYER = tuple(f"{m}.LayerNorm.{p}" for m in ("attention.output", "output") for p in ("weight", "bias"))
SIDES = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
SIDE_NORMS = tuple(f"{m}.{p}" for m in SIDES for p in ("weight", "bias"))

EMBED = ("model.embed_tokens.weight",)
HEAD = ("lm_head.weight",)
NORM = ("model.norm.weight",)
LAYERS: Stacks = (("model.layers.", 4),)
OLD_LAYERS: Stacks = (("transformer.h.", 4),)
INNER_LAYERS: Stacks = (("language_model.model.layers.", 4),)
INNER_EMBED = ("language_model.model.embed_tokens.weight",)
INNER_HEAD = ("language_model.lm_head.weight",)
INNER_NORM = ("language_model.model.norm.weight",)


def _both(*modules: str) -> Names:
    return tuple(f"{module}.{part}" for module in modules for part in ("weight", "bias"))


def _make(config: str, model: str, sizes: Mapping[str, Any] = SIZES, **changes: Any) -> Callable[[], tuple[Any, str]]:
    """A config class and a model class of transformers, by name."""

    def build() -> tuple[Any, str]:
        import transformers

        return getattr(transformers, config)(**{**sizes, **changes}), model

    return build


def _ids(*before: int) -> Any:
    import torch

    return torch.tensor([[*before, 5, 17, 3, 99, 42, 8, 64, 11]])


def _pair() -> dict[str, Any]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids()[:, :4]}


def _picture(tokens: int, *, crops: bool = False, **more: Any) -> Callable[[], dict[str, Any]]:
    """A 16 x 16 picture and its placeholders."""

    def inputs() -> dict[str, Any]:
        import torch

        pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
        return {"input_ids": _ids(*[IMAGE] * tokens), "pixel_values": pixels[None] if crops else pixels, **more}

    return inputs


def _patches() -> dict[str, Any]:
    """Qwen-VL: 16 patches of 3 x 2 x 4 x 4, four of which become one token."""
    import torch

    ids = _ids(125, *[IMAGE] * 4)
    return {
        "input_ids": ids,
        "pixel_values": torch.linspace(-1, 1, 16 * 96).reshape(16, 96),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def _mel() -> dict[str, Any]:
    import torch

    return {"input_features": torch.linspace(-1, 1, 16 * 64).reshape(1, 16, 64), "decoder_input_ids": _ids()[:, :4]}


# ------------------------------------------------------------------------------------------------------- the table


def _llama_like(config: str, model: str, layer_norms: Names = PRE_POST, **more: Any) -> Architecture:
    """model.layers.N, model.embed_tokens, model.norm, lm_head (without one if `tied`)."""
    fields = {key: more.pop(key) for key in list(more) if key in Architecture.__dataclass_fields__}
    tied = more.get("tie_word_embeddings", False)
    names = {"embeddings": (), "head": EMBED} if tied else {"embeddings": EMBED, "head": HEAD}
    return Architecture(_make(config, model, **more), LAYERS, layer_norms, **{"norms": NORM, **names, **fields})


def _llava() -> tuple[Any, str]:
    import transformers as t

    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**TOWER), text_config=t.LlamaConfig(**SIZES), image_token_index=IMAGE
    )
    return config, "LlavaForConditionalGeneration"


def _paligemma() -> tuple[Any, str]:
    import transformers as t

    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**TOWER),
        text_config=t.GemmaConfig(**SIZES, head_dim=8),
        projection_dim=32,
        image_token_index=IMAGE,
    )
    return config, "PaliGemmaForConditionalGeneration"


def _gemma3_vision() -> tuple[Any, str]:
    import transformers as t

    config = t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**TOWER),
        text_config=t.Gemma3TextConfig(**SIZES, head_dim=8),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    )
    return config, "Gemma3ForConditionalGeneration"


def _qwen2_vl() -> tuple[Any, str]:
    import transformers as t

    vision = {"depth": 4, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    config = t.Qwen2VLConfig(
        text_config={**SIZES, "rope_parameters": MROPE},
        vision_config={**vision, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=IMAGE,
        video_token_id=126,
        vision_start_token_id=125,
        vision_end_token_id=124,
        tie_word_embeddings=False,
    )
    return config, "Qwen2VLForConditionalGeneration"


def _qwen25_vl() -> tuple[Any, str]:
    import transformers as t

    vision = {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4}
    more = {"spatial_merge_size": 2, "temporal_patch_size": 2, "fullatt_block_indexes": [1], "window_size": 16}
    config = t.Qwen2_5_VLConfig(
        text_config={**SIZES, "rope_parameters": MROPE, "tie_word_embeddings": True},
        vision_config={**vision, **more, "out_hidden_size": 32},
        image_token_id=IMAGE,
        video_token_id=126,
        vision_start_token_id=125,
        vision_end_token_id=124,
        tie_word_embeddings=True,
    )
    return config, "Qwen2_5_VLForConditionalGeneration"


def _idefics3() -> tuple[Any, str]:
    import transformers as t

    config = t.Idefics3Config(
        vision_config=TOWER, text_config=t.LlamaConfig(**SIZES), image_token_id=IMAGE, scale_factor=2
    )
    return config, "Idefics3ForConditionalGeneration"


def _internvl() -> tuple[Any, str]:
    import transformers as t

    config = t.InternVLConfig(
        vision_config={**TOWER, "image_size": [16, 16], "patch_size": [4, 4], "use_qk_norm": True},
        text_config={**SIZES, "model_type": "qwen2"},
        image_token_id=IMAGE,
    )
    return config, "InternVLForConditionalGeneration"


def _mllama() -> tuple[Any, str]:
    import transformers as t

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_global_layers": 2,
        "attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 96,
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    config = t.MllamaConfig(
        text_config={**SIZES, "cross_attention_layers": [1, 3]}, vision_config=vision, image_token_index=IMAGE
    )
    return config, "MllamaForConditionalGeneration"


def _llama4() -> tuple[Any, str]:
    import transformers as t

    experts = {"num_local_experts": 2, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2}
    vision = {**TOWER, "intermediate_size": 128, "vision_output_dim": 32}
    config = t.Llama4Config(
        text_config={**SIZES, "head_dim": 8, **experts},
        vision_config={**vision, "projector_input_dim": 32, "projector_output_dim": 32},
    )
    return config, "Llama4ForConditionalGeneration"


def _granite_speech() -> tuple[Any, str]:
    import transformers as t

    encoder = {"input_dim": 16, "num_layers": 2, "hidden_dim": 32, "feedforward_mult": 2, "num_heads": 4, "dim_head": 8}
    qformer = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = t.GraniteSpeechConfig(
        text_config=t.GraniteConfig(**SIZES),
        encoder_config={**encoder, "output_dim": 8, "context_size": 8, "max_pos_emb": 16},
        projector_config=t.Blip2QFormerConfig(**qformer, encoder_hidden_size=32, cross_attention_frequency=1),
        audio_token_index=IMAGE,
        has_lora_adapter=False,
        window_size=4,
        downsample_rate=2,
    )
    return config, "GraniteSpeechForConditionalGeneration"


ARCHITECTURES: dict[str, Architecture] = {
    # ------------------------------------------------------------------------------------------- decoders, dense
    "llama": _llama_like("LlamaConfig", "LlamaForCausalLM", own_process=True),
    "llama_attention_bias": _llama_like(
        "LlamaConfig",
        "LlamaForCausalLM",
        attention_bias=True,
        mlp_bias=True,
        holds={"model.layers.*.self_attn.?_proj.bias": 16, "model.layers.*.mlp.*_proj.bias": 12},
    ),
    "llama_reward": _llama_like(
        "LlamaConfig", "LlamaForSequenceClassification", num_labels=1, head=("score.weight",), holds={"score.weight": 1}
    ),
    "mistral": _llama_like("MistralConfig", "MistralForCausalLM", head_dim=8, dtype="float32", rlhf_shard="60KB"),
    "qwen2": _llama_like(
        "Qwen2Config", "Qwen2ForCausalLM", dtype="float16", holds={"model.layers.*.self_attn.?_proj.bias": 12}
    ),
    # the flag says tied, but this class has no head over the vocabulary: its embeddings are embeddings and nothing else
    "qwen2_reward": _llama_like(
        "Qwen2Config",
        "Qwen2ForSequenceClassification",
        num_labels=1,
        tie_word_embeddings=True,
        embeddings=EMBED,
        head=("score.weight",),
        holds={"score.weight": 1},
    ),
    "qwen3": _llama_like("Qwen3Config", "Qwen3ForCausalLM", (*PRE_POST, *QK), head_dim=8, tie_word_embeddings=True),
    "gemma2": _llama_like("Gemma2Config", "Gemma2ForCausalLM", GEMMA, head_dim=8, tie_word_embeddings=True),
    "gemma3": _llama_like("Gemma3TextConfig", "Gemma3ForCausalLM", (*GEMMA, *QK), head_dim=8, tie_word_embeddings=True),
    # only embed_tokens is tied to the head: the per-layer embeddings are embeddings
    "gemma3n": _llama_like(
        "Gemma3nTextConfig",
        "Gemma3nForCausalLM",
        (*GEMMA, *QK, "altup.router_norm.weight", "laurel.post_laurel_norm.weight", "post_per_layer_input_norm.weight"),
        head_dim=8,
        tie_word_embeddings=True,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        altup_num_inputs=3,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
        embeddings=("model.embed_tokens_per_layer.weight",),
        norms=(*NORM, "model.per_layer_projection_norm.weight"),
        other=("model.altup_projections.*", "model.altup_unembed_projections.*", "model.per_layer_model_projection.*"),
    ),
    "phi3": _llama_like("Phi3Config", "Phi3ForCausalLM", holds={"*.qkv_proj.weight": 4, "*.gate_up_proj.weight": 4}),
    "phi": _llama_like(
        "PhiConfig",
        "PhiForCausalLM",
        ("input_layernorm.weight", "input_layernorm.bias"),
        head=_both("lm_head"),
        norms=_both("model.final_layernorm"),
    ),
    "gpt2": Architecture(
        _make("GPT2Config", "GPT2LMHeadModel", TOKENS, vocab_size=128, n_embd=32, n_layer=4, n_head=4, n_positions=64),
        OLD_LAYERS,
        LN_1_2,
        embeddings=("transformer.wpe.weight",),
        head=("transformer.wte.weight",),
        norms=_both("transformer.ln_f"),
        dtype="float16",
        config_without=("tie_word_embeddings",),
    ),
    "gpt_neox": Architecture(
        _make("GPTNeoXConfig", "GPTNeoXForCausalLM", BERT_SIZES, **TOKENS),
        (("gpt_neox.layers.", 4),),
        PRE_POST_BIASED,
        embeddings=("gpt_neox.embed_in.weight",),
        head=("embed_out.weight",),
        norms=_both("gpt_neox.final_layer_norm"),
    ),
    "opt": Architecture(
        _make("OPTConfig", "OPTForCausalLM", SIZES, word_embed_proj_dim=24, ffn_dim=48),
        (("model.decoder.layers.", 4),),
        _both("self_attn_layer_norm", "final_layer_norm"),
        embeddings=("model.decoder.embed_positions.weight",),
        head=("model.decoder.embed_tokens.weight",),
        norms=_both("model.decoder.final_layer_norm"),
        other=("model.decoder.project_in.weight", "model.decoder.project_out.weight"),
    ),
    "falcon": Architecture(
        _make("FalconConfig", "FalconForCausalLM", BERT_SIZES, **TOKENS),
        OLD_LAYERS,
        _both("input_layernorm"),
        head=("transformer.word_embeddings.weight",),
        norms=_both("transformer.ln_f"),
    ),
    "falcon_new_decoder": Architecture(
        _make(
            "FalconConfig",
            "FalconForCausalLM",
            BERT_SIZES,
            num_kv_heads=2,
            new_decoder_architecture=True,
            bias=True,
            tie_word_embeddings=False,
        ),
        OLD_LAYERS,
        _both("ln_attn", "ln_mlp"),
        embeddings=("transformer.word_embeddings.weight",),
        head=HEAD,
        norms=_both("transformer.ln_f"),
    ),
    "bloom": Architecture(
        _make("BloomConfig", "BloomForCausalLM", TOKENS, vocab_size=VOCABULARY, hidden_size=32, n_layer=4, n_head=4),
        OLD_LAYERS,
        PRE_POST_BIASED,
        head=("transformer.word_embeddings.weight",),
        norms=_both("transformer.ln_f", "transformer.word_embeddings_layernorm"),
    ),
    "mpt": Architecture(
        _make(
            "MptConfig", "MptForCausalLM", {}, vocab_size=VOCABULARY, d_model=32, n_layers=4, n_heads=4, max_seq_len=64
        ),
        (("transformer.blocks.", 4),),
        ("norm_1.weight", "norm_2.weight"),
        head=("transformer.wte.weight",),
        norms=("transformer.norm_f.weight",),
    ),
    "cohere": _llama_like(
        "CohereConfig",
        "CohereForCausalLM",
        ("input_layernorm.weight", *QK),
        use_qk_norm=True,
        tie_word_embeddings=True,
    ),
    "olmo2": _llama_like("Olmo2Config", "Olmo2ForCausalLM", (*GEMMA[1:], *QK)),
    "stablelm": _llama_like(
        "StableLmConfig",
        "StableLmForCausalLM",
        (*PRE_POST_BIASED, "self_attn.q_layernorm.norms.*.weight", "self_attn.k_layernorm.norms.*.weight"),
        use_qkv_bias=True,
        qk_layernorm=True,
        partial_rotary_factor=0.5,
        norms=_both("model.norm"),
        holds={"*.self_attn.[qk]_layernorm.norms.*.weight": 24},
    ),
    # ------------------------------------------------------------------------------------------ decoders, experts
    "mixtral": _llama_like(
        "MixtralConfig",
        "MixtralForCausalLM",
        num_local_experts=4,
        rlhf_shard="60KB",
        out_shard="50KB",
        holds={"*.block_sparse_moe.experts.*.w?.weight": 48, "*.block_sparse_moe.gate.weight": 4},
    ),
    "qwen3_moe": _llama_like(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        (*PRE_POST, *QK),
        **ROUTED,
        head_dim=8,
        mlp_only_layers=[0],
        holds={"*.mlp.experts.*.weight": 36, "*.mlp.gate.weight": 3, "model.layers.0.mlp.*_proj.weight": 3},
    ),
    "qwen3_next": _llama_like(
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        (*PRE_POST, *QK, "linear_attn.norm.weight"),
        **ROUTED,
        head_dim=8,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        holds={"*.mlp.experts.*.weight": 48, "*.mlp.shared_expert*.weight": 16, "*.linear_attn.A_log": 3},
    ),
    "deepseek_v2": _llama_like(
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        (*PRE_POST, "self_attn.kv_a_layernorm.weight"),
        num_key_value_heads=4,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        holds={"*.mlp.experts.*.weight": 36, "*.mlp.shared_experts.*.weight": 9},
    ),
    "deepseek_v3": _llama_like(
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        (*PRE_POST, "self_attn.kv_a_layernorm.weight", "self_attn.q_a_layernorm.weight"),
        num_key_value_heads=4,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        float32=("*.e_score_correction_bias",),
        own_process=True,
        holds={
            "*.mlp.experts.*.weight": 36,
            "*.mlp.shared_experts.*.weight": 9,
            "*.mlp.gate.e_score_correction_bias": 3,
            "*.self_attn.kv_a_proj_with_mqa.weight": 4,
        },
    ),
    "gpt_oss": _llama_like(
        "GptOssConfig",
        "GptOssForCausalLM",
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
        holds={"*.mlp.experts.*": 16, "*.self_attn.sinks": 4, "*.mlp.router.*": 8},
    ),
    "granite_moe_hybrid": _llama_like(
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridForCausalLM",
        (*PRE_POST, "mamba.norm.weight"),
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=24,
        layer_types=["mamba", "attention"] * 2,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
        holds={"*.block_sparse_moe.*.weight": 12, "*.shared_mlp.*.weight": 8},
    ),
    # ------------------------------------------------------------------------------- state spaces and convolutions
    "mamba": Architecture(
        _make(
            "MambaConfig",
            "MambaForCausalLM",
            TOKENS,
            vocab_size=VOCABULARY,
            hidden_size=32,
            state_size=4,
            num_hidden_layers=4,
            time_step_rank=4,
            pad_token_id=0,
        ),
        (("backbone.layers.", 4),),
        ("norm.weight",),
        head=("backbone.embeddings.weight",),
        norms=("backbone.norm_f.weight",),
        holds={"*.mixer.A_log": 4, "*.mixer.D": 4, "*.mixer.conv1d.*": 8},
    ),
    "mamba2": Architecture(
        _make(
            "Mamba2Config",
            "Mamba2ForCausalLM",
            TOKENS,
            vocab_size=VOCABULARY,
            hidden_size=32,
            state_size=8,
            num_hidden_layers=4,
            num_heads=8,
            head_dim=8,
            n_groups=2,
            chunk_size=8,
            pad_token_id=0,
        ),
        (("backbone.layers.", 4),),
        ("norm.weight", "mixer.norm.weight"),
        embeddings=("backbone.embeddings.weight",),
        head=HEAD,
        norms=("backbone.norm_f.weight",),
    ),
    # its output head is called `head`
    "rwkv": Architecture(
        _make(
            "RwkvConfig",
            "RwkvForCausalLM",
            TOKENS,
            vocab_size=VOCABULARY,
            hidden_size=32,
            attention_hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            context_length=32,
        ),
        (("rwkv.blocks.", 4),),
        (*_both("ln1", "ln2"), *_both("pre_ln")),
        embeddings=("rwkv.embeddings.weight",),
        head=("head.weight",),
        norms=_both("rwkv.ln_out"),
    ),
    "jamba": _llama_like(
        "JambaConfig",
        "JambaForCausalLM",
        ("input_layernorm.weight", "pre_ff_layernorm.weight", "mamba.*_layernorm.weight"),
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
        norms=("model.final_layernorm.weight",),
        holds={"*.feed_forward.experts.*.weight": 12, "*.mamba.A_log": 2},
    ),
    "lfm2": _llama_like(
        "Lfm2Config",
        "Lfm2ForCausalLM",
        ("operator_norm.weight", "ffn_norm.weight", "self_attn.q_layernorm.weight", "self_attn.k_layernorm.weight"),
        layer_types=["conv", "full_attention"] * 2,
        block_multiple_of=16,
        tie_word_embeddings=True,
        norms=("model.embedding_norm.weight",),
    ),
    # -------------------------------------------------------------------------------- encoders, and encoder-decoders
    "bert": Architecture(
        _make("BertConfig", "BertForMaskedLM", BERT_SIZES),
        (("bert.encoder.layer.", 4),),
        BERT_LAYER,
        embeddings=BERT_POSITIONS,
        head=BERT_HEAD,
        norms=_both("bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"),
    ),
    # as it is on the Hub since 2018: the config leaves the tie to the class's default, which is tied
    "bert_old_config": Architecture(
        _make("BertConfig", "BertForMaskedLM", BERT_SIZES),
        (("bert.encoder.layer.", 4),),
        BERT_LAYER,
        embeddings=BERT_POSITIONS,
        head=BERT_HEAD,
        norms=_both("bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"),
        config_without=("tie_word_embeddings",),
    ),
    # as qwen2_reward: config.json says tied, and there is nothing to tie to
    "bert_classifier": Architecture(
        _make("BertConfig", "BertForSequenceClassification", BERT_SIZES, num_labels=3),
        (("bert.encoder.layer.", 4),),
        BERT_LAYER,
        embeddings=tuple(f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")),
        norms=_both("bert.embeddings.LayerNorm"),
        other=("bert.pooler.dense.*", "classifier.*"),
        holds={"classifier.*": 2, "bert.pooler.*": 2},
    ),
    "roberta": Architecture(
        _make("RobertaConfig", "RobertaForMaskedLM", BERT_SIZES),
        (("roberta.encoder.layer.", 4),),
        BERT_LAYER,
        embeddings=tuple(f"roberta.embeddings.{kind}_embeddings.weight" for kind in ("position", "token_type")),
        head=("roberta.embeddings.word_embeddings.weight", "lm_head.bias", *_both("lm_head.dense")),
        norms=_both("roberta.embeddings.LayerNorm", "lm_head.layer_norm"),
    ),
    "t5": Architecture(
        _make(
            "T5Config",
            "T5ForConditionalGeneration",
            {},
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=4,
            num_decoder_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        ),
        (("encoder.block.", 4), ("decoder.block.", 2)),
        ("layer.?.layer_norm.weight",),
        head=("shared.weight",),
        norms=("encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"),
        inputs=_pair,
        dtype="float32",
        rlhf_shard="100KB",
        own_process=True,
        holds={"*.relative_attention_bias.weight": 2},
    ),
    "bart": Architecture(
        _make(
            "BartConfig",
            "BartForConditionalGeneration",
            TOKENS,
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=3,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            pad_token_id=0,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        ),
        (("model.encoder.layers.", 3), ("model.decoder.layers.", 2)),
        SIDE_NORMS,
        embeddings=("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"),
        head=("model.shared.weight",),
        norms=_both("model.encoder.layernorm_embedding", "model.decoder.layernorm_embedding"),
        other=("final_logits_bias",),
        inputs=_pair,
    ),
    "whisper": Architecture(
        _make(
            "WhisperConfig",
            "WhisperForConditionalGeneration",
            TOKENS,
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=4,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_source_positions=32,
            max_target_positions=32,
            num_mel_bins=16,
            pad_token_id=0,
            decoder_start_token_id=2,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        (("model.encoder.layers.", 4), ("model.decoder.layers.", 2)),
        SIDE_NORMS,
        embeddings=("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"),
        head=("model.decoder.embed_tokens.weight",),
        norms=_both("model.encoder.layer_norm", "model.decoder.layer_norm"),
        other=("model.encoder.conv?.*",),
        inputs=_mel,
        holds={"model.encoder.conv?.*": 4},
    ),
    # ------------------------------------------------------------------------------------- pictures, sound and text
    "llava": Architecture(
        _llava,
        INNER_LAYERS,
        PRE_POST,
        embeddings=INNER_EMBED,
        head=INNER_HEAD,
        norms=INNER_NORM,
        other=("vision_tower.*", "multi_modal_projector.*"),
        inputs=_picture(4),
        rlhf_shard="80KB",
        own_process=True,
        holds={"vision_tower.encoder.layers.*": 64, "vision_tower.embeddings.*": 3, "multi_modal_projector.*": 4},
    ),
    "paligemma": Architecture(
        _paligemma,
        INNER_LAYERS,
        PRE_POST,
        head=INNER_EMBED,
        norms=INNER_NORM,
        other=("vision_tower.*", "multi_modal_projector.*"),
        inputs=_picture(4),
        holds={"vision_tower.encoder.layers.*": 64, "vision_tower.head.*": 11, "multi_modal_projector.linear.*": 2},
    ),
    "gemma3_vision": Architecture(
        _gemma3_vision,
        INNER_LAYERS,
        (*GEMMA, *QK),
        head=INNER_EMBED,
        norms=INNER_NORM,
        other=("vision_tower.*", "multi_modal_projector.*"),
        inputs=_picture(4),
        holds={"vision_tower.encoder.layers.*": 64, "multi_modal_projector.*": 2},
    ),
    "qwen2_vl": Architecture(
        _qwen2_vl,
        LAYERS,
        PRE_POST,
        embeddings=EMBED,
        head=HEAD,
        norms=NORM,
        other=("visual.*",),
        inputs=_patches,
        holds={"visual.blocks.*": 48, "visual.merger.*": 6, "visual.patch_embed.*": 1},
    ),
    "qwen2_5_vl": Architecture(
        _qwen25_vl,
        LAYERS,
        PRE_POST,
        head=EMBED,
        norms=NORM,
        other=("visual.*",),
        inputs=_patches,
        holds={"visual.blocks.*": 48, "visual.merger.*": 5, "visual.patch_embed.*": 1},
    ),
    "idefics3": Architecture(
        _idefics3,
        (("model.text_model.layers.", 4),),
        PRE_POST,
        embeddings=("model.text_model.embed_tokens.weight",),
        head=HEAD,
        norms=("model.text_model.norm.weight",),
        other=("model.vision_model.*", "model.connector.*"),
        inputs=_picture(1, crops=True),
        holds={"model.vision_model.encoder.layers.*": 64, "model.connector.*": 1},
    ),
    "internvl": Architecture(
        _internvl,
        INNER_LAYERS,
        PRE_POST,
        head=INNER_EMBED,
        norms=INNER_NORM,
        other=("vision_tower.*", "multi_modal_projector.*"),
        inputs=_picture(4),
        holds={"vision_tower.encoder.layer.*": 68, "multi_modal_projector.*": 6},
    ),
    # the embeddings have eight rows more than the head: two matrices of different shapes, and not tied
    "mllama": Architecture(
        _mllama,
        INNER_LAYERS,
        (*PRE_POST, "cross_attn.q_norm.weight", "cross_attn.k_norm.weight"),
        embeddings=INNER_EMBED,
        head=INNER_HEAD,
        norms=INNER_NORM,
        other=("vision_model.*", "multi_modal_projector.*"),
        holds={"vision_model.*": 77, "multi_modal_projector.*": 2, "*.cross_attn.*": 12},
    ),
    "llama4": Architecture(
        _llama4,
        INNER_LAYERS,
        PRE_POST,
        embeddings=INNER_EMBED,
        head=INNER_HEAD,
        norms=INNER_NORM,
        other=("vision_model.*", "multi_modal_projector.*"),
        holds={"vision_model.model.layers.*": 64, "multi_modal_projector.*": 1, "*.feed_forward.experts.*": 4},
    ),
    # its audio encoder is called `encoder`, holds batch norms and counts batches in int64
    "granite_speech": Architecture(
        _granite_speech,
        INNER_LAYERS,
        PRE_POST,
        head=INNER_EMBED,
        norms=INNER_NORM,
        other=("encoder.*", "projector.*"),
        holds={"encoder.layers.*": 66, "*.num_batches_tracked": 2, "projector.qformer.*": 54, "projector.query": 1},
    ),
}

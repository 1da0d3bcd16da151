"""Does transformers load what was written, and does it speak?"""

from __future__ import annotations

from pathlib import Path

from amatax.checkpoints.folder import read_json
from amatax.errors import MissingExtraError, OutputError


def load_and_answer(folder: str, prompt: str, *, trust_remote_code: bool = False, new_tokens: int = 64) -> str:
    """Load a folder with transformers, look at the logits of one prompt, and answer it, greedily.

    Returns:
        The answer; the output's shape for models that do not generate text.

    Raises:
        MissingExtraError: without transformers.
        OutputError: if a key is missing or unexpected, or a logit is not finite.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("--load needs transformers", 'pip install "amatax[transformers]"') from None
    import torch

    transformers.logging.set_verbosity_error()
    config = read_json(Path(folder) / "config.json")
    if config.get("auto_map") and not trust_remote_code:
        raise OutputError(
            f"{folder}: the checkpoint brings its own code", "--trust-remote-code runs it, if you trust it"
        )
    names = config.get("architectures") or ["AutoModelForCausalLM"]
    model_class = getattr(transformers, names[0], transformers.AutoModelForCausalLM)
    try:
        model, info = model_class.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=trust_remote_code, dtype="auto"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        hint = "does transformers load the inputs? The folder has the config and the tokenizer files of the inputs"
        raise OutputError(f"{folder}: transformers cannot load it: {reason}", hint) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            raise OutputError(f"{folder}: transformers reports {what}: {sorted(info[what])[:3]}", "please report this")
    model.eval()
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    inputs = {key: value for key, value in inputs.items() if key in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        begin = {}
        if model.config.is_encoder_decoder:
            begin = {"decoder_input_ids": torch.tensor([[model.generation_config.decoder_start_token_id or 0]])}
        output = model(**inputs, **begin)[0]
        if not output.isfinite().all():
            raise OutputError(f"{folder}: the logits are not finite", "look at the inputs: do they give finite logits?")
        if not model.can_generate():
            return f"(this model does not generate text; output of shape {tuple(output.shape)})"
        tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return str(tokenizer.decode(tokens[0, start:], skip_special_tokens=True)).strip()

"""The few lines of Python that load an export with plain transformers, for its card."""

from __future__ import annotations

import json

from trainer.export.gather import Chosen


def snippet(chosen: Chosen, repo: str, prompt: str | list[int], *, adapter: bool) -> str:
    """prompt: one of the run's as text, or as token ids where the text would be tokenised otherwise."""
    if isinstance(prompt, str):
        tokens = f'tokenizer({json.dumps(prompt, ensure_ascii=False)}, add_special_tokens=False, return_tensors="pt")'
        tokens += '["input_ids"]'
    else:
        tokens = f"torch.tensor([{prompt}])"
    return _generate(chosen, repo, tokens, adapter) if chosen.head == "lm" else _numbers(chosen, repo, tokens)


def _imports(classes: str) -> str:
    return f"import torch\nfrom transformers import {classes}\n\n"


def _generate(chosen: Chosen, repo: str, tokens: str, adapter: bool) -> str:
    rollout = chosen.config.rollout
    name = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = _imports("AutoTokenizer" if adapter else f"{name}, AutoTokenizer")
    if adapter:
        imports = f"from peft import {name}\n{imports}"
    load = (
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")\nmodel = {name}.from_pretrained("{repo}", dtype="auto")\n'
    )
    if chosen.what != "policy":
        return (
            f"{imports}{load}ids = {tokens}\nwith torch.no_grad():\n    logits = model(ids).logits[0, :-1]\n"
            f"logp = torch.log_softmax(logits / {rollout.temperature}, -1).gather(1, ids[0, 1:, None])[:, 0]\n"
            "print(logp)  # of every token but the first\n"
        )
    stop = f", stop_strings={rollout.stop}, tokenizer=tokenizer" if rollout.stop else ""
    return (
        f"{imports}{load}ids = {tokens}\n"
        f"output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, "
        f"temperature={rollout.temperature},\n"
        f"                        top_p={rollout.top_p}, max_new_tokens={rollout.max_response_tokens}{stop})\n"
        "print(tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True))\n"
    )


def _numbers(chosen: Chosen, repo: str, tokens: str) -> str:
    kind, name, where, what = {
        "token": ("AutoModelForTokenClassification", "numbers", "logits[0, :, 0]", "one a token"),
        "sequence": ("AutoModelForSequenceClassification", "score", "logits[0]", "at the last token"),
    }[chosen.head]
    return (
        f"{_imports(f'{kind}, AutoTokenizer')}"
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")\n'
        f'model = {kind}.from_pretrained("{repo}", dtype="auto")\n'
        f"ids = {tokens}  # the prompt; append the response\nwith torch.no_grad():\n"
        f"    {name} = model(ids).{where}  # {what}\nprint({name})\n"
    )

"""peft's LoRA on llama-untied: saved adapter, logits, loss, gradients, merged weights -> lora/."""
import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from tiny import FIXTURES, generator, load, write_json, write_tensors

RANK, ALPHA = 4, 8
OUT = FIXTURES / "lora"
CONFIG = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], bias="none",
                    task_type="CAUSAL_LM")


def adapter_tensors(model):
    """name as in adapter_model.safetensors -> parameter"""
    return {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}


base = load("llama-untied")
inputs = load_file(FIXTURES / "llama-untied" / "expected.safetensors")
ids, mask = inputs["input_ids"], inputs["attention_mask"]

model = get_peft_model(base, CONFIG)
g = generator(200)
for n, p in sorted(adapter_tensors(model).items()):
    # A of peft's own size (kaiming uniform over 32 inputs is within +-0.18); B large enough to move the logits.
    p.data = torch.randn(p.shape, generator=g) * (0.15 if "lora_A" in n else 0.3)
model.save_pretrained(OUT)
(OUT / "README.md").unlink(missing_ok=True)
written = json.loads((OUT / "adapter_config.json").read_text())
written["target_modules"] = sorted(written["target_modules"])  # a set: its order changes from run to run
write_json(OUT / "adapter_config.json", written | {"base_model_name_or_path": "llama-untied"})

# From here on the adapter as read back from disk.
model = PeftModel.from_pretrained(load("llama-untied"), OUT, is_trainable=True).eval()
logits = model(input_ids=ids, attention_mask=mask).logits
real = mask[..., None].float()
# Row 0: positions 7..10 predict tokens 8..11. Row 1 (9 real tokens): positions 5..7 predict tokens 6..8.
positions = torch.tensor([[0, t] for t in range(7, 11)] + [[1, t] for t in range(5, 8)])
labels = torch.stack([ids[r, t + 1] for r, t in positions.tolist()])
loss = torch.nn.functional.cross_entropy(logits[positions[:, 0], positions[:, 1]], labels)
loss.backward()
grads = {f"grad.{n}": p.grad for n, p in adapter_tensors(model).items()}
assert all(v.abs().max() > 1e-4 for v in grads.values())
assert not any(p.grad is not None for n, p in model.named_parameters() if "lora_" not in n)

merged = {}
adapter = load_file(OUT / "adapter_model.safetensors")
by_hand = load("llama-untied")
for n, p in by_hand.named_parameters():
    key = "base_model.model." + n.removesuffix(".weight")
    if f"{key}.lora_A.weight" in adapter:
        p.data += ALPHA / RANK * adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
        merged[f"merged.{n}"] = p
with torch.no_grad():
    merged_logits = by_hand(input_ids=ids, attention_mask=mask).logits
    unloaded = model.merge_and_unload()
    unload_logits = unloaded(input_ids=ids, attention_mask=mask).logits
torch.testing.assert_close(merged_logits, unload_logits, rtol=1e-5, atol=1e-5)
torch.testing.assert_close(merged_logits, logits, rtol=1e-4, atol=1e-4)

write_tensors(OUT / "expected.safetensors", {
    "input_ids": ids, "attention_mask": mask, "logits": logits * real, "loss": loss, "label_positions": positions,
    "label_tokens": labels, "merged_logits": merged_logits * real, "merge_and_unload_logits": unload_logits * real,
    **grads, **merged})
moved = (logits - load("llama-untied")(input_ids=ids, attention_mask=mask).logits).abs().max()
print("loss %.4f" % loss.item(), "logits moved by up to %.2f" % moved.item())

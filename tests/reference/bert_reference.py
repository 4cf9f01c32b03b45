"""A tiny BERT of transformers and its outputs -> bert/; with MINILM_DIR as argument also MiniLM's sentence vectors -> minilm/."""
import sys

import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM

from tiny import FIXTURES, generator, write_json, write_tensors

WORDS = "red blue green pen pencil paper book lamp desk chair , . - 1 2 3 big small".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##er", "##ing"]


def sentence_vectors(hidden, mask):
    """sentence-transformers' mean pooling and normalisation."""
    mask = mask[..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


torch.manual_seed(7)
config = BertConfig(
    vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=24, attn_implementation="eager")
model = BertForMaskedLM(config).eval()
g = generator(700)
with torch.no_grad():
    for name, p in model.named_parameters():
        # Wider than BERT's 0.02, so that every part shows in the output; norms not all one, biases not all zero.
        p.copy_(torch.randn(p.shape, generator=g) * (0.1 if p.ndim == 1 else 0.2) + (1.0 if "LayerNorm.weight" in name else 0.0))
    model.tie_weights()
folder = FIXTURES / "bert"
model.save_pretrained(folder)
(folder / "model.safetensors").chmod(0o644)
(folder / "generation_config.json").unlink(missing_ok=True)
(folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
lengths = [9, 6, 2]
ids = torch.randint(5, len(VOCABULARY), (3, 9), generator=g)
mask = torch.zeros(3, 9, dtype=torch.long)
for row, length in enumerate(lengths):
    ids[row, 0], ids[row, length - 1], ids[row, length:] = 2, 3, 0
    mask[row, :length] = 1
with torch.no_grad():
    hidden = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
write_tensors(folder / "expected.safetensors", {
    "input_ids": ids, "attention_mask": mask, "hidden": hidden * mask[..., None], "sentence_vectors": sentence_vectors(hidden, mask)})

if len(sys.argv) > 1:
    sentences = [
        "HP 12C Financial Calculator", "", "Café \"Noir\" Bürostuhl, schwarz — 100% cotton!", "日本語 pens 🖊 & paper",
        "Avery Self-Adhesive Removable Labels, 0.5 x 1.75 Inches, White, 840 per Pack (05422)", "word " * 300]
    tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    batch = tokenizer(sentences, padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    write_tensors(FIXTURES / "minilm" / "expected.safetensors", {"sentence_vectors": sentence_vectors(hidden, batch["attention_mask"])})
    write_json(FIXTURES / "minilm" / "sentences.json", {
        "sentences": sentences, "ids": [row[m.bool()].tolist() for row, m in zip(batch["input_ids"], batch["attention_mask"])]})

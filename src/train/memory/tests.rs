use super::*;
use crate::config::LoraConfig;

/// One token of a block of width 4, two heads of 2 that share a key, an inner width of 6.
#[test]
fn what_a_block_keeps_by_hand() {
    let llama = DecoderConfig {
        hidden_size: 4,
        intermediate_size: 6,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 2,
        ..DecoderConfig::tiny(10)
    };
    let lora = LoraConfig { rank: 3, dropout: 0.0, ..LoraConfig::default() };
    let sizes = |tune| MemoryEstimator {
        decoder: &llama,
        tune,
        precision: Precision::F32,
        quantized: None,
        encoder: None,
        entities: 0,
    };
    let pass = Pass { tokens: 1, rows: 1, padded_tokens: 1, past: 5, entities: 0 };
    // q, k, v and the two heads' log sums; a copy of the five earlier tokens' keys and values.
    let attended = 4 + 2 + 2 + 2 + 2 * 5 * 2;
    // A norm: its input and the row's scale.
    let norm = 4 + 1;
    let gates = 2 * 6;
    let kept = |tune, input| {
        let block = sizes(tune).block(pass, true, input);
        (block.attention, block.mlp)
    };
    // The norm's output and two tokens between thin matrices; nothing before the first block has a
    // gradient.
    assert_eq!(kept(Tune::Lora(&lora, 1), true), (norm + 4 + 2 * 3 + attended, norm + gates));
    assert_eq!(kept(Tune::Lora(&lora, 1), false), (4 + 2 * 3 + attended, norm + gates));
    let dropped = LoraConfig { dropout: 0.1, ..lora.clone() };
    assert_eq!(kept(Tune::Lora(&dropped, 1), true).0, norm + 2 * 4 + 2 * 3 + attended, "dropout's output, of each");
    assert_eq!(kept(Tune::Frozen, true), (norm + attended, norm + gates));
    // The left side of every product.
    assert_eq!(kept(Tune::Full, true), (norm + 4 + 4 + attended, norm + gates + 4 + 6));
}

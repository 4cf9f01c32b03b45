//! Vectors in a prompt: spliced as by hand, with a shared beginning run once, and trained with the
//! LLM frozen.

use burn::module::AutodiffModule;
use itemlm::model::{
    BertConfig, Entities, ItemEncoder, ItemEncoderConfig, MlpEncoder, PrefillOutput, QFormerConfig, QFormerEncoder,
};
use itemlm::text::EntityTokens;

use crate::*;

const ITEMS: usize = 5;
const USERS: usize = 3;
pub(super) const WIDTH: usize = 6;

/// Returns the sizes of a tiny Q-Former of 3 queries.
pub(super) fn qformer() -> ItemEncoderConfig {
    let text = BertConfig {
        vocab_size: 20,
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 24,
        max_position_embeddings: 8,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_dropout_prob: 0.1,
        attention_probs_dropout_prob: 0.1,
    };
    ItemEncoderConfig::QFormer(QFormerConfig { queries: 3, vector_width: WIDTH, cross_attention_every: 2, text })
}

fn encoders() -> [ItemEncoderConfig; 3] {
    [
        ItemEncoderConfig::Linear { queries: 1, vector_width: WIDTH },
        ItemEncoderConfig::Mlp { queries: 2, vector_width: WIDTH },
        qformer(),
    ]
}

fn vectors() -> Vec<f32> {
    (0..(ITEMS + USERS) * WIDTH).map(|n| ((n * n) as f32 * 0.37).sin()).collect()
}

fn tokens<B: Backend>(llm: &Decoder<B>, config: &ItemEncoderConfig) -> EntityTokens {
    EntityTokens::new(llm.config().vocab_size, config.queries(), ITEMS, USERS).unwrap()
}

fn model<B: Backend<Device = DispatchDevice>>(
    config: &ItemEncoderConfig,
    device: &DispatchDevice,
) -> (ItemLanguageModel<B>, EntityTokens) {
    let llm = llama("llama-untied", Tune::Frozen, device);
    let tokens = tokens(&llm, config);
    let scale = ItemLanguageModel::embedding_scale(&llm);
    let encoder = ItemEncoder::new(config, None, llm.config().hidden_size, scale, 3, device).unwrap();
    let entities = Entities::new(encoder, vectors(), WIDTH, tokens, None, device);
    (ItemLanguageModel::new(llm, Some(entities)), tokens)
}

/// Computes `x Wᵀ + b` of one row, by hand.
fn dense(x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let row = |(w, b): (&[f32], &f32)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() + b;
    weight.chunks(x.len()).zip(bias).map(row).collect()
}

/// Returns the hidden states that an entity's tokens become, `[K, hidden]`, computed by hand from
/// the parameters. A Q-Former's queries are computed by its own forward pass, which `alignment`
/// compares with torch's.
fn encode_entity(model: &ItemLanguageModel<Dispatch>, entity: usize, device: &DispatchDevice) -> Vec<f32> {
    let all = vectors();
    let kind = if entity < ITEMS { &all[..ITEMS * WIDTH] } else { &all[ITEMS * WIDTH..] };
    let scale = (kind.iter().map(|v| v * v).sum::<f32>() / kind.len() as f32).sqrt();
    let vector: Vec<f32> = all[entity * WIDTH..][..WIDTH].iter().map(|v| v / scale).collect();
    let encoder = &model.entities.as_ref().unwrap().encoder;
    let projection = encoder.projection();
    let (weight, bias) = (host(projection.weight.val()), host(projection.bias.val()));
    match encoder {
        ItemEncoder::Linear(_) => dense(&vector, &weight, &bias),
        ItemEncoder::Mlp(MlpEncoder { inner, .. }) => {
            let hidden = dense(&vector, &host(inner.weight.val()), &host(inner.bias.val()));
            dense(&hidden.iter().map(|h| h.max(0.0)).collect::<Vec<_>>(), &weight, &bias)
        }
        ItemEncoder::QFormer(QFormerEncoder { qformer, .. }) => {
            let queries = qformer.forward(Tensor::from_data(TensorData::new(vector, [1, 1, WIDTH]), device));
            let width = queries.dims()[2];
            host(queries).chunks(width).flat_map(|query| dense(query, &weight, &bias)).collect()
        }
    }
}

#[test]
fn vectors_are_spliced_as_by_hand() {
    for device in devices() {
        for config in encoders() {
            let (model, numbers) = model::<Dispatch>(&config, &device);
            let (hidden, k) = (model.llm.config().hidden_size, config.queries());
            // Two rows with an item, a user, and one item twice.
            let row = |item, user| -> Vec<u32> {
                [
                    vec![4, 9],
                    numbers.item(item).collect(),
                    vec![7],
                    numbers.user(user).collect(),
                    numbers.item(2).collect(),
                ]
                .concat()
            };
            let rows = [row(2, 1), row(4, 0)].concat();
            let found = host(model.embed(&rows, 2, rows.len() / 2));
            let table = host(model.llm.embed_tokens.val());
            let mut expected = Vec::new();
            for (item, user) in [(2, 1), (4, 0)] {
                let ordinary = |token: usize| table[token * hidden..][..hidden].to_vec();
                expected.extend([ordinary(4), ordinary(9), encode_entity(&model, item, &device), ordinary(7)].concat());
                expected
                    .extend([encode_entity(&model, ITEMS + user, &device), encode_entity(&model, 2, &device)].concat());
            }
            assert_eq!(found.len(), 2 * (3 + 3 * k) * hidden);
            close(&format!("{config:?}"), &found, &expected);
        }
    }
}

#[test]
fn a_beginning_run_once_changes_nothing() {
    for device in devices() {
        let (model, numbers) = model::<Dispatch>(&encoders()[1], &device);
        let begun = model.clone().with_prefix_cache(&[5, 6, 7, 8]);
        let vector: Vec<u32> = numbers.item(1).collect();
        // Rows that share all of it, and rows that share two tokens.
        for (last, shared) in [(7, 3), (9, 2)] {
            let first = [5, 6, 7, 20, vector[0], vector[1], 30];
            let second = [5, 6, last, 21, 22, vector[0]];
            let rows: [&[u32]; 2] = [&first, &second];
            let (plain, cached) = (model.forward(&rows, 3), begun.forward(&rows, 3));
            assert_eq!((plain.cached_len, cached.cached_len), (0, shared));
            for (row, tokens) in rows.iter().enumerate() {
                let hidden = |run: &PrefillOutput<Dispatch>, at: usize| {
                    host(run.hidden.clone().narrow(0, run.hidden_index(row, at), 1))
                };
                (shared..tokens.len()).for_each(|at| close("hidden states", &hidden(&cached, at), &hidden(&plain, at)));
                for (mut cached, plain) in cached.cache.layers.clone().into_iter().zip(&plain.cache.layers) {
                    let (own, (plain_k, plain_v)) = (cached.own.remove(0), plain.own[0].clone());
                    let (shared_k, shared_v) = cached.shared.unwrap();
                    let of_row = |t: Tensor<Dispatch, 4>| t.narrow(0, row, 1);
                    let real = |t: Tensor<Dispatch, 4>| host(t.narrow(2, 0, tokens.len()));
                    close("keys", &real(Tensor::cat(vec![shared_k, of_row(own.0)], 2)), &real(of_row(plain_k)));
                    close("values", &real(Tensor::cat(vec![shared_v, of_row(own.1)], 2)), &real(of_row(plain_v)));
                }
            }
        }
        assert_eq!(begun.forward(&[&[5, 6, 7, 8, 9]], 1).cached_len, 1, "what is needed is run");
        // A single row is one of a batch.
        let (alone, among) =
            (begun.forward(&[&[5, 6, 7, 20, 21]], 3), begun.forward(&[&[5, 6, 7, 20, 21], &[5, 6, 7, 9]], 3));
        close("alone", &host(alone.hidden.narrow(0, 1, 1)), &host(among.hidden.narrow(0, 1, 1)));
    }
}

/// One step moves every parameter of the encoder and no bit of the LLM; with its beginning run once
/// the gradients are the same.
#[test]
fn the_encoder_trains_and_frozen_means_frozen() {
    let targets = vec![vec![10, 11, 2], vec![10, 12, 2], vec![13, 14, 2]];
    let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
    for device in devices() {
        for config in encoders() {
            let (model, numbers) = model::<Training>(&config, &device);
            let prompt = |item: u32| [vec![5, 6, 7], numbers.item(item).collect(), vec![8]].concat();
            let example = |item: u32| Example { prompt: prompt(item), target: Target::Item(item), logit_bias: vec![] };
            let batch = || vec![Batch::new(&[example(0), example(1), example(2)], &catalogue, Candidates::Children)];
            let begun = model.clone().with_prefix_cache(&[5, 6, 7, 8]);
            let msl = Loss::Msl(Msl { temperature: 1.0 });
            let [(mut one, found), (mut other, cached)] = [&model, &begun].map(|model| step(model, batch(), msl, 9));
            near("loss", cached.loss, found.loss);
            let norm = clip_grad_norm(&model, &mut one, 1e9).unwrap();
            assert!(norm > 0.0);
            near("gradient norm", clip_grad_norm(&begun, &mut other, 1e9).unwrap(), norm);
            let gradient = |linear: &burn::module::Param<Tensor<Training, 2>>, grads: &GradientsParams| {
                host(grads.get::<Dispatch, 2>(linear.id).unwrap())
            };
            let projection = &model.entities.as_ref().unwrap().encoder.projection().weight;
            close("projection's gradient", &gradient(projection, &other), &gradient(projection, &one));

            let mut optimizer = adamw::<ItemLanguageModel<Training>, Training>(0.01);
            let trained = burn::optim::Optimizer::step(&mut optimizer, 0.1, model.clone(), one).valid();
            let (before, after) = (model.valid(), trained);
            let llm = |m: &ItemLanguageModel<Dispatch>| {
                let layer = &m.llm.layers[0];
                let head = m.llm.lm_head.as_ref().unwrap().weight.dense();
                [
                    m.llm.embed_tokens.val(),
                    layer.linear(Projection::Query).weight.dense(),
                    layer.linear(Projection::Down).weight.dense(),
                    head,
                ]
                .map(host)
            };
            assert_eq!(llm(&before), llm(&after), "frozen means frozen");
            let moved = |m: &ItemLanguageModel<Dispatch>| {
                let encoder = &m.entities.as_ref().unwrap().encoder;
                let first = match encoder {
                    ItemEncoder::Linear(_) => vec![],
                    ItemEncoder::Mlp(encoder) => host(encoder.inner.weight.val()),
                    ItemEncoder::QFormer(encoder) => host(encoder.qformer.query_tokens.val()),
                };
                (host(encoder.projection().weight.val()), first)
            };
            let ((projection, first), (new_projection, new_first)) = (moved(&before), moved(&after));
            assert_ne!(projection, new_projection);
            assert!(first.is_empty() || first != new_first);
        }
    }
}

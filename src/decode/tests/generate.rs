//! Generation and log-likelihoods against running whole sequences.

use super::*;

#[test]
fn generating_equals_running_the_whole_sequence_each_time() {
    let device = BackendName::Cpu.device().unwrap();
    let llm = llama(&device);
    let model = ItemLanguageModel::from(llm.clone());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    let prompts = prompts(&mut rng);
    let alone = |prompt: &Vec<u32>, eos: u32| {
        let mut sequence = prompt.clone();
        while sequence.len() < prompt.len() + 12 {
            let log_probs = next_token(&llm, &sequence, &device);
            let best = (0..log_probs.len()).max_by(|&a, &b| log_probs[a].total_cmp(&log_probs[b])).unwrap() as u32;
            if best == eos {
                break;
            }
            sequence.push(best);
        }
        sequence.split_off(prompt.len())
    };
    // No end, and an end that the second text meets on its way.
    let free: Vec<Vec<u32>> = prompts.iter().map(|prompt| alone(prompt, u32::MAX)).collect();
    assert_eq!(generate(&model, &prompts, &[12; 4], u32::MAX, &device).unwrap(), free);
    let eos = free[1][5];
    let texts = generate(&model, &prompts, &[12; 4], eos, &device).unwrap();
    assert_eq!(texts, prompts.iter().map(|prompt| alone(prompt, eos)).collect::<Vec<_>>());
    assert!(texts[1].len() <= 5 && texts.iter().all(|text| !text.contains(&eos)));
    assert_eq!(
        generate(&model, &prompts, &[3; 4], u32::MAX, &device).unwrap(),
        free.iter().map(|t| t[..3].to_vec()).collect::<Vec<_>>()
    );
    assert_eq!(generate(&model, &prompts, &[0; 4], eos, &device).unwrap(), vec![Vec::<u32>::new(); 4]);
    assert!(generate(&model, &[], &[], eos, &device).unwrap().is_empty());

    // Each text has a limit of its own, and does not depend on the others.
    let limits = [2, 12, 0, 7];
    let cut: Vec<Vec<u32>> = free.iter().zip(limits).map(|(text, limit)| text[..limit].to_vec()).collect();
    assert_eq!(generate(&model, &prompts, &limits, u32::MAX, &device).unwrap(), cut);
    for ((prompt, limit), text) in prompts.iter().zip(limits).zip(&cut) {
        let alone = generate(&model, std::slice::from_ref(prompt), &[limit], u32::MAX, &device).unwrap();
        assert_eq!(alone, std::slice::from_ref(text));
    }

    // After a prefix that all prompts share, run once.
    let shared = [11, 5, 40];
    let prompts: Vec<Vec<u32>> = prompts.iter().map(|prompt| [&shared[..], prompt].concat()).collect();
    let free: Vec<Vec<u32>> = prompts.iter().map(|prompt| alone(prompt, u32::MAX)).collect();
    let model = model.with_prefix_cache(&shared);
    assert_eq!(generate(&model, &prompts, &[12; 4], u32::MAX, &device).unwrap(), free);
    let found = log_likelihoods(&model, &prompts, &free).unwrap();
    let expected = log_likelihoods(&llm.into(), &prompts, &free).unwrap();
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?} instead of {expected:?}");
}

#[test]
fn likelihoods_are_those_of_the_tokens_one_by_one() {
    let device = BackendName::Cpu.device().unwrap();
    let llm = llama(&device);
    let model = ItemLanguageModel::from(llm.clone());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
    let prompts = prompts(&mut rng);
    let targets: Vec<Vec<u32>> =
        [3, 6, 1, 0].map(|length| (0..length).map(|_| rng.random_range(2..96)).collect()).to_vec();
    for ((prompt, target), found) in
        prompts.iter().zip(&targets).zip(log_likelihoods(&model, &prompts, &targets).unwrap())
    {
        let steps = (0..target.len()).map(|t| {
            let before = [prompt.as_slice(), &target[..t]].concat();
            next_token(&llm, &before, &device)[target[t] as usize]
        });
        let expected: f64 = steps.sum();
        assert!((found - expected).abs() < 1e-4, "{found} instead of {expected}");
    }
}

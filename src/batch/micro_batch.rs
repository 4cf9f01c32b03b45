//! An optimiser step's samples, cut into micro-batches: what one forward pass takes.

use std::cmp::Reverse;

use super::example::ExampleSequence;
use super::token_tree::TreeBuilder;
use super::{Batch, Candidates, Example, common_prefix_len};
use crate::config::MicroBatch;
use crate::text::Catalogue;

impl MicroBatch {
    /// Cuts `samples` into batches of samples of similar length, so that attention has little
    /// padding. A sample is one or more examples, which stay together. All batches have the prefix
    /// that the prompts of all samples share.
    ///
    /// # Panics
    /// As [`Batch::new`].
    pub fn batches(self, samples: Vec<Vec<Example>>, catalogue: &Catalogue, candidates: Candidates) -> Vec<Batch> {
        self.batches_for(1, samples, catalogue, candidates)
    }

    /// Cuts `samples` as [`MicroBatch::batches`] does; where that gives fewer batches than
    /// `devices`, cuts finer, so that each device has a batch if there are samples enough.
    pub fn batches_for(
        self,
        devices: usize,
        mut samples: Vec<Vec<Example>>,
        catalogue: &Catalogue,
        candidates: Candidates,
    ) -> Vec<Batch> {
        samples.sort_by_key(|examples| Reverse(examples.iter().map(|example| example.prompt.len()).max()));
        let shared = common_prefix_len(samples.iter().flatten().map(|example| example.prompt.as_slice()));
        let insert = |trees: &mut TreeBuilder, sample: &[Example]| {
            for example in sample {
                trees.insert(&ExampleSequence::new(example, catalogue, candidates).tokens[shared..]);
            }
        };
        let wanted = devices.min(samples.len());
        let mut groups = self.groups(&samples, insert);
        if groups.len() < wanted {
            let finer = match self {
                Self::Samples(_) => Self::Samples(samples.len() / wanted),
                Self::Tokens(_) => {
                    let mut all = TreeBuilder::default();
                    samples.iter().for_each(|sample| insert(&mut all, sample));
                    Self::Tokens(all.node_count.div_ceil(devices))
                }
            };
            groups = finer.groups(&samples, insert);
        }
        // One long sample may leave all others in one group: halve the largest group.
        while groups.len() < wanted
            && let Some(largest) = (0..groups.len()).max_by_key(|&n| groups[n].len())
        {
            let (first, second) = groups[largest].split_at(groups[largest].len() / 2);
            groups.splice(largest..=largest, [first, second]);
        }
        let batch =
            |samples: &[Vec<Example>]| Batch::with_shared_prefix(shared, &samples.concat(), catalogue, candidates);
        groups.into_iter().map(batch).collect()
    }

    /// Cuts `samples` into runs of neighbours that fit; `insert` puts a sample into trees.
    fn groups(self, samples: &[Vec<Example>], insert: impl Fn(&mut TreeBuilder, &[Example])) -> Vec<&[Vec<Example>]> {
        let budget = match self {
            Self::Samples(count) => return samples.chunks(count).collect(),
            Self::Tokens(budget) => budget,
        };
        let (mut groups, mut first, mut trees) = (Vec::new(), 0, TreeBuilder::default());
        for (n, sample) in samples.iter().enumerate() {
            insert(&mut trees, sample);
            if n > first && trees.node_count > budget {
                groups.push(&samples[first..n]);
                (first, trees) = (n, TreeBuilder::default());
                insert(&mut trees, sample);
            }
        }
        groups.extend(samples.get(first..).filter(|rest| !rest.is_empty()));
        groups
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::batch::Target;
    use crate::text::Trie;

    #[test]
    fn budgets_are_kept_and_nothing_is_lost() {
        let targets = vec![vec![1, 2, 3, 9], vec![1, 4, 9], vec![5, 6, 9]];
        let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
        for round in 0..200 {
            let candidates = if round % 2 == 0 { Candidates::Children } else { Candidates::Vocabulary };
            let samples: Vec<Vec<Example>> = (0..rng.random_range(0..20))
                .map(|_| {
                    let prompt: Vec<u32> = [7, 8]
                        .into_iter()
                        .chain((0..rng.random_range(1..30)).map(|_| rng.random_range(1..4)))
                        .collect();
                    // One sample is one prompt, or several that begin alike.
                    let count = rng.random_range(1..4).min(prompt.len());
                    let examples = (0..count).map(|n| {
                        let (prompt, target) =
                            (prompt[..prompt.len() - n].to_vec(), Target::Item(rng.random_range(0..3)));
                        Example { prompt, target, logit_bias: vec![] }
                    });
                    examples.collect()
                })
                .collect();
            let budget = rng.random_range(1..200);
            let batches = MicroBatch::Tokens(budget).batches(samples.clone(), &catalogue, candidates);
            let one = MicroBatch::Samples(100).batches(samples.clone(), &catalogue, candidates);
            let alone = MicroBatch::Samples(1).batches(samples.clone(), &catalogue, candidates);
            for batch in &batches {
                assert_eq!(
                    batch.token_trees.shared_prefix, one[0].token_trees.shared_prefix,
                    "one shared prefix a step"
                );
                let tokens = batch.token_trees.tokens.len();
                assert!(tokens <= budget || alone.contains(batch), "{tokens} of {budget}");
            }
            let sums = |batches: &[Batch]| {
                let sum = |count: fn(&Batch) -> usize| batches.iter().map(count).sum::<usize>();
                [
                    sum(|b| b.predictions.len()),
                    sum(|b| b.target_tokens),
                    sum(|b| b.branching_tokens),
                    sum(|b| b.plain_tokens),
                ]
            };
            assert_eq!(sums(&batches), sums(&one));
            for (devices, micro) in
                [1, 2, 3].into_iter().flat_map(|n| [(n, MicroBatch::Tokens(budget)), (n, MicroBatch::Samples(9))])
            {
                let found = micro.batches_for(devices, samples.clone(), &catalogue, candidates);
                assert_eq!(sums(&found), sums(&one));
                let plain = micro.batches(samples.clone(), &catalogue, candidates);
                assert!(
                    found.len() >= plain.len() && (found == plain || plain.len() < devices),
                    "{} of {micro:?}",
                    found.len()
                );
                let largest = |batches: &[Batch]| batches.iter().map(|b| b.token_trees.tokens.len()).max().unwrap_or(0);
                match micro {
                    MicroBatch::Tokens(_) => assert!(largest(&found) <= largest(&plain)),
                    MicroBatch::Samples(size) => assert!(plain.len() == samples.len().div_ceil(size)),
                }
                assert!(found.len() >= devices.min(samples.len()), "{} of {micro:?}", found.len());
            }
            if budget >= 180 {
                assert!(batches.len() <= samples.len().div_ceil(2), "{} batches of {}", batches.len(), samples.len());
            }
        }
    }
}

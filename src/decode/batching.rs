//! Number of prompts that run together, and the prefix that they share.

use crate::batch::common_prefix_len;

/// Most prompt tokens of one forward pass, the shared prefix not counted. One longer prompt runs
/// alone.
const TOKEN_BUDGET: usize = 4096;

/// About the number of tokens that a search runs for each beam, beside the prompt.
pub const TOKENS_PER_BEAM: usize = 8;

/// Returns the number of prompts that run in one forward pass if the longest of them takes
/// `longest` tokens: at least 1.
pub fn prompts_per_pass(longest: usize) -> usize {
    (TOKEN_BUDGET / longest.max(1)).max(1)
}

/// Returns the tokens with which all `prompts` begin; at least the last token of each is left out.
pub fn common_prefix(prompts: &[Vec<u32>]) -> &[u32] {
    let tokens = common_prefix_len(prompts.iter().map(Vec::as_slice));
    prompts.first().map_or(&[], |prompt| &prompt[..tokens])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_budgets() {
        let prompts = [vec![1, 2, 3, 4], vec![1, 2, 3], vec![1, 2, 3, 9, 9]];
        assert_eq!(common_prefix(&prompts), [1, 2]);
        assert_eq!(common_prefix(&prompts[..1]), [1, 2, 3]);
        assert!(common_prefix(&[]).is_empty() && common_prefix(&[vec![5], vec![5]]).is_empty());
        assert_eq!([0, 1, 2000, 4096, 5000].map(prompts_per_pass), [4096, 4096, 2, 1, 1]);
    }
}

//! Windows of a user's sequence.

use super::config::Protocol;
use crate::data::Split;

/// A window of one user's sequence: from event `start` to event `end - 1`, the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowSpan {
    pub(super) start: u32,
    pub(super) end: u32,
    /// `None` where the target's time decides.
    pub(super) split: Option<Split>,
}

impl Protocol {
    /// Returns the windows of a sequence of `len` events, by their end.
    pub(super) fn spans(self, len: u32) -> impl Iterator<Item = WindowSpan> {
        let (history, ends) = match self {
            Self::Msl { history } => (history, len.min(history.saturating_add(1)).max(2)..=len),
            Self::LeaveOneOut { history } => (history, 2..=len),
        };
        ends.map(move |end| WindowSpan {
            start: end.saturating_sub(history.saturating_add(1)),
            end,
            split: match self {
                Self::Msl { .. } => None,
                Self::LeaveOneOut { .. } if len < 3 => Some(Split::Train),
                Self::LeaveOneOut { .. } => Some(match len - end {
                    0 => Split::Test,
                    1 => Split::Valid,
                    _ => Split::Train,
                }),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(protocol: Protocol, len: u32) -> Vec<(u32, u32)> {
        protocol.spans(len).map(|c| (c.start, c.end)).collect()
    }

    #[test]
    fn msl_slides_over_longer_sequences_only() {
        let msl = Protocol::Msl { history: 10 };
        assert_eq!(spans(msl, 0), []);
        assert_eq!(spans(msl, 1), []);
        assert_eq!(spans(msl, 2), [(0, 2)]);
        assert_eq!(spans(msl, 11), [(0, 11)]);
        assert_eq!(spans(msl, 13), [(0, 11), (1, 12), (2, 13)]);
    }

    #[test]
    fn leave_one_out_trains_on_every_prefix() {
        let openp5 = Protocol::LeaveOneOut { history: 2 };
        let all: Vec<_> = openp5.spans(5).map(|c| (c.start, c.end, c.split.unwrap())).collect();
        assert_eq!(all, [(0, 2, Split::Train), (0, 3, Split::Train), (1, 4, Split::Valid), (2, 5, Split::Test)]);
        let short: Vec<_> = openp5.spans(2).map(|c| c.split.unwrap()).collect();
        assert_eq!(short, [Split::Train]);
        assert_eq!(openp5.spans(3).map(|c| c.split.unwrap()).collect::<Vec<_>>(), [Split::Valid, Split::Test]);
    }
}

//! What `prepare` should give, the slow way: nested loops over the events, no data frame, no hash
//! map.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

/// Someone met something. `time` in milliseconds; none where the source tells only the order, as of
/// `rating`.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub user: String,
    pub item: String,
    pub time: Option<i64>,
    pub rating: Option<f32>,
}

/// A log in its source's order, and the titles of those items that have one.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub events: Vec<Event>,
    pub titles: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub enum Step {
    Rating { min: f32 },
    Duplicates,
    Titled,
    TitleLength { min: usize, max: usize },
    SampleItems { count: usize, seed: u64 },
    KCore { user: usize, item: usize },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Protocol {
    Msl { history: usize },
    LeaveOneOut { history: usize },
}

/// User, first interaction, number of interactions, the target's time in seconds.
pub type Window = (u32, u32, u32, Option<i64>);

/// A corpus, as far as it can be told from its files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Corpus {
    /// Id and title.
    pub items: Vec<(String, String)>,
    /// User's number and id, item, seconds.
    pub interactions: Vec<(u32, String, u32, Option<i64>)>,
    /// Ratings of the interactions, where the source has ratings.
    pub ratings: Vec<f32>,
    /// Train, valid, test.
    pub windows: [Vec<Window>; 3],
}

impl Step {
    pub fn name(&self) -> &'static str {
        match self {
            Step::Rating { .. } => "rating",
            Step::Duplicates => "duplicates",
            Step::Titled => "titled",
            Step::TitleLength { .. } => "title_length",
            Step::SampleItems { .. } => "sample_items",
            Step::KCore { .. } => "k_core",
        }
    }

    fn apply<'a>(&self, events: &[&'a Event], titles: &BTreeMap<String, String>) -> Vec<&'a Event> {
        let keep = |test: &dyn Fn(&Event) -> bool| events.iter().copied().filter(|e| test(e)).collect();
        match self {
            Step::Rating { min } => keep(&|e| e.rating.is_some_and(|r| r >= *min)),
            Step::Duplicates => {
                let mut kept: Vec<&Event> = Vec::new();
                for event in events {
                    let known = |k: &&Event| k.user == event.user && k.item == event.item && k.time == event.time;
                    if !kept.iter().any(known) {
                        kept.push(event);
                    }
                }
                kept
            }
            Step::Titled => keep(&|e| titles.get(&e.item).is_some_and(|t| !t.trim().is_empty())),
            Step::TitleLength { min, max } => {
                let length = |item: &str| titles.get(item).map_or(0, |t| t.chars().count());
                keep(&|e| (*min..=*max).contains(&length(&e.item)))
            }
            Step::SampleItems { count, seed } => {
                let mut items: Vec<&str> =
                    events.iter().map(|e| e.item.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
                items.sort_by_key(|id| Sha256::digest(format!("{seed}:{id}")).to_vec());
                items.truncate(*count);
                keep(&|e| items.contains(&e.item.as_str()))
            }
            Step::KCore { user, item } => {
                let mut events = events.to_vec();
                loop {
                    let users = |e: &Event| events.iter().filter(|o| o.user == e.user).count();
                    let items = |e: &Event| events.iter().filter(|o| o.item == e.item).count();
                    let kept: Vec<&Event> =
                        events.iter().copied().filter(|e| users(e) >= *user && items(e) >= *item).collect();
                    if kept.len() == events.len() {
                        return kept;
                    }
                    events = kept;
                }
            }
        }
    }
}

/// Returns the corpus of a log, and how many events each step dropped. There is no corpus if no
/// event or no window is left.
pub fn prepare(log: &Log, steps: &[Step], protocol: Protocol) -> (Option<Corpus>, Vec<(&'static str, usize)>) {
    let mut events: Vec<&Event> = log.events.iter().collect();
    let mut dropped = Vec::new();
    for step in steps {
        let kept = step.apply(&events, &log.titles);
        dropped.push((step.name(), events.len() - kept.len()));
        events = kept;
    }
    let users: BTreeSet<&str> = events.iter().map(|e| e.user.as_str()).collect();
    let items: Vec<&str> = events.iter().map(|e| e.item.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    let mut corpus = Corpus::default();
    for id in &items {
        corpus.items.push((id.to_string(), log.titles.get(*id).cloned().unwrap_or_default()));
    }
    let seconds = |e: &Event| e.time.map(|t| t.div_euclid(1000));
    // A window with the key that orders it.
    let mut windows: Vec<((i64, u32, u32), Window)> = Vec::new();
    for (user, id) in users.into_iter().enumerate() {
        let mut own: Vec<&Event> = events.iter().copied().filter(|e| e.user == id).collect();
        own.sort_by_key(|e| e.time); // Stable: ties stay in the order of the input.
        let first = corpus.interactions.len();
        for event in &own {
            let item = items.iter().position(|i| *i == event.item).unwrap();
            corpus.interactions.push((user as u32, id.to_string(), item as u32, seconds(event)));
            corpus.ratings.extend(event.rating);
        }
        let mut window = |split: usize, start: usize, end: usize| {
            let target = own[end - 1];
            let window = (user as u32, (first + start) as u32, (end - start) as u32, seconds(target));
            match protocol {
                Protocol::Msl { .. } => windows.push(((target.time.unwrap_or(0), user as u32, end as u32), window)),
                Protocol::LeaveOneOut { .. } => corpus.windows[split].push(window),
            }
        };
        match protocol {
            Protocol::Msl { history } if own.len() > history + 1 => {
                (history + 1..=own.len()).for_each(|end| window(0, end - history - 1, end));
            }
            Protocol::Msl { .. } => (own.len()..own.len() + 1).filter(|n| *n >= 2).for_each(|end| window(0, 0, end)),
            Protocol::LeaveOneOut { history } => {
                for end in 2..=own.len() {
                    let split = if own.len() < 3 { 0 } else { (end + 2).saturating_sub(own.len()) };
                    window(split, end.saturating_sub(history + 1), end);
                }
            }
        }
    }
    if matches!(protocol, Protocol::Msl { .. }) {
        windows.sort_unstable();
        let count = windows.len();
        for (rank, (_, window)) in windows.into_iter().enumerate() {
            let split = usize::from(rank >= count * 8 / 10) + usize::from(rank >= count * 9 / 10);
            corpus.windows[split].push(window);
        }
    }
    let any = corpus.windows.iter().any(|w| !w.is_empty());
    (any.then_some(corpus), dropped)
}

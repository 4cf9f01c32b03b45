//! The embedded default data: a made-up catalogue of book series and a made-up log of their
//! readers.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::corpus::{Corpus, Item, Provenance, Step, UserLog, Window};

const ADJECTIVES: [&str; 8] = ["Silent", "Crimson", "Hollow", "Golden", "Broken", "Distant", "Winter", "Hidden"];
/// The nouns of each genre. Two series of a genre share a noun, series of all genres the
/// adjectives.
const GENRES: [[&str; 3]; 5] = [
    ["Alibi", "Manor", "Cipher"],
    ["Comet", "Orbit", "Nebula"],
    ["Orchid", "Meadow", "Willow"],
    ["Kettle", "Pantry", "Saffron"],
    ["Harbor", "Anchor", "Lagoon"],
];
const SERIES_PER_GENRE: usize = 6;
const VOLUMES: usize = 5;
const READERS: usize = 700;
/// Length of the log, days.
const DAYS: f64 = 1000.0;
/// 2020-01-01, in seconds.
const EPOCH: i64 = 1_577_836_800;
/// Length of a window (history and target), and of the shortest log that is kept, as in MSL's data.
const WINDOW: usize = 11;
const SHORTEST: usize = 5;

struct Series {
    genre: usize,
    /// Relative frequency, Zipf-like.
    popularity: f64,
    /// Day on which each volume comes out.
    release: [f64; VOLUMES],
}

/// Makes the synthetic corpus of a seed: 150 titles such as "Silent Orbit 3" (30 series of 5
/// volumes in 5 genres) and some 600 readers who follow series in order, stay in their genre and
/// now and then read anything, the popular more often. Windows and splits are MSL's: at most 10
/// items of history, 8:1:1 by time. Last volumes that come out late are cold: only their titles
/// tell what they belong to.
pub fn synthetic(seed: u64) -> (Corpus, Provenance) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (items, series) = catalogue(&mut rng);
    let mut users = Vec::new();
    for reader in 0..READERS {
        let events = read(&series, &mut rng);
        if events.len() >= SHORTEST {
            users.push(UserLog { id: format!("reader-{}", reader + 1), events });
        }
    }

    let mut windows = Vec::new();
    let mut first = 0;
    for (user, log) in users.iter().enumerate() {
        let len = log.events.len().min(WINDOW);
        for start in 0..=log.events.len() - len {
            let time = log.events[start + len - 1].1;
            let (user, start) = (user as u32, (first + start) as u32);
            windows.push((time, Window { user, start, len: len as u32 }));
        }
        first += log.events.len();
    }
    windows.sort_by_key(|w| w.0);
    let mut train: Vec<Window> = windows.into_iter().map(|w| w.1).collect();
    let total = train.len();
    let test = train.split_off(total * 9 / 10);
    let valid = train.split_off(total * 8 / 10);
    let steps = vec![Step {
        name: "readers".into(),
        before: READERS,
        after: users.len(),
        users: None,
        items: None,
        what: format!("readers with at least {SHORTEST} interactions"),
    }];
    let source = format!("synthetic: made by itemlm's generator, seed {seed}");
    let corpus = Corpus::new("synthetic", items, users, train, Some(valid), test)
        .expect("the generator's windows lie within its logs");
    (corpus, Provenance { source, inputs: vec![], steps })
}

fn catalogue(rng: &mut ChaCha8Rng) -> (Vec<Item>, Vec<Series>) {
    let mut items = Vec::new();
    let mut series = Vec::new();
    let mut ranks: Vec<usize> = (0..GENRES.len() * SERIES_PER_GENRE).collect();
    ranks.shuffle(rng);
    for (genre, nouns) in GENRES.iter().enumerate() {
        let mut adjectives = ADJECTIVES;
        adjectives.shuffle(rng);
        for (number, adjective) in adjectives.into_iter().take(SERIES_PER_GENRE).enumerate() {
            let noun = nouns[number % nouns.len()];
            for volume in 1..=VOLUMES {
                let id = (items.len() + 1).to_string();
                items.push(Item { id, title: format!("{adjective} {noun} {volume}") });
            }
            // Two series in five still run near the end of the log: their last volume is cold.
            let late = rng.random_bool(0.4);
            let last = if late { rng.random_range(0.88..0.95) } else { rng.random_range(0.2..0.7) };
            let years = rng.random_range(0.3..0.8);
            let release = std::array::from_fn(|v| {
                let back = (VOLUMES - 1 - v) as f64 / (VOLUMES - 1) as f64;
                DAYS * (last - years * back)
            });
            let popularity = 1.0 / (2.0 + ranks[series.len()] as f64);
            series.push(Series { genre, popularity, release });
        }
    }
    (items, series)
}

/// Makes one reader's log: catalogue index and time.
fn read(series: &[Series], rng: &mut ChaCha8Rng) -> Vec<(u32, Option<i64>)> {
    let home = series[draw(rng, series.iter().map(|s| s.popularity))].genre;
    // Number of volumes read of each series.
    let mut done: BTreeMap<usize, usize> = BTreeMap::new();
    let mut current = None;
    let mut events = Vec::new();
    let mut day = DAYS * rng.random_range(0.0..0.92);
    let books = rng.random_range(SHORTEST..=26);
    while events.len() < books && day < DAYS {
        let next = |s: usize, done: &BTreeMap<usize, usize>| {
            let volume = done.get(&s).copied().unwrap_or(0);
            let out = series[s].release.get(volume).is_some_and(|release| *release <= day);
            out.then_some(volume)
        };
        let anything = rng.random_bool(0.08);
        let goes_on = !anything && rng.random_bool(0.75);
        let mut choice = current.filter(|_| goes_on).and_then(|s| Some((s, next(s, &done)?)));
        if choice.is_none() {
            let stays = !anything && rng.random_bool(0.8);
            let open = |s: usize| next(s, &done).is_some() && (!stays || series[s].genre == home);
            let weights = series.iter().enumerate();
            let weights = weights.map(|(s, it)| if open(s) { it.popularity } else { 0.0 });
            let drawn = draw(rng, weights);
            choice = next(drawn, &done).map(|volume| (drawn, volume));
        }
        if let Some((s, volume)) = choice {
            done.insert(s, volume + 1);
            current = Some(s);
            let item = (s * VOLUMES + volume) as u32;
            events.push((item, Some(EPOCH + (day * 86_400.0) as i64)));
        }
        day += rng.random_range(1.0..25.0);
    }
    events
}

/// Draws an index with a probability in proportion to its weight; the last one if all weights are
/// 0.
fn draw(rng: &mut ChaCha8Rng, weights: impl Iterator<Item = f64>) -> usize {
    let weights: Vec<f64> = weights.collect();
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return index;
        }
    }
    weights.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::data::Split;

    #[test]
    fn is_a_seeded_catalogue_and_log() {
        for seed in 0..5 {
            let (corpus, provenance) = synthetic(seed);
            assert_eq!((&corpus, &provenance), (&synthetic(seed).0, &synthetic(seed).1));
            assert_eq!(corpus.items.len(), 150);
            let titles: HashSet<&str> = corpus.items.iter().map(|i| i.title.as_str()).collect();
            assert_eq!(titles.len(), 150);
            let (users, cold) = (corpus.users(), corpus.cold_items(Split::Test));
            assert!((600..=700).contains(&users), "{users} readers");
            let test = corpus.windows(Split::Test);
            let train = corpus.windows(Split::Train);
            assert!((200..500).contains(&test.len()), "{} test windows", test.len());
            let cold = test.iter().filter(|w| cold[corpus.target(w) as usize]).count();
            assert!(cold * 20 > test.len() && cold * 3 < test.len(), "{cold} cold targets");
            let latest = train.iter().filter_map(|w| corpus.timestamp(w)).max();
            assert!(test.iter().all(|w| corpus.timestamp(w) >= latest));
            assert!(corpus.windows(Split::Train).iter().all(|w| (5..=11).contains(&w.len)));
        }
        assert_ne!(synthetic(1).0, synthetic(2).0);
    }

    #[test]
    fn is_saved_and_opened() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("synthetic");
        let (corpus, provenance) = synthetic(42);
        corpus.save(&dir, &provenance).unwrap();
        assert_eq!(Corpus::open(&dir).unwrap(), corpus);
    }
}

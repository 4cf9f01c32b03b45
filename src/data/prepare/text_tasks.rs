//! Rows of the tasks of ELM whose answers public fields give: title, genres, tags, plot, director,
//! actors.
//!
//! | task | items | text |
//! |---|---|---|
//! | `summary` | one with a plot | the plot |
//! | `long description` | one with a plot | title, genres, director, actors, plot and tags, as sentences |
//! | `common with nn` | one and its nearest | the genres and tags of both |
//! | `diff than nn` | one and its nearest | the genres of one alone and, where both have tags, the tags of one alone |
//! | `similarities` | one and another that shares a genre or tag | the genres and tags of both |
//!
//! An item's nearest has the largest share of common genres and tags (Jaccard: those of both over
//! those of either); of several the one that follows it first in the order of the ids, round and
//! round. The other item of `similarities` is the first that follows it and is not its nearest.
//! Capitals make no difference to tags. ELM finds its nearest items by vectors. The other 19 tasks
//! ask for opinions and inventions, which no field holds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufWriter, Write};
use std::path::Path;

use rayon::prelude::*;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::core::files;
use crate::data::progress::check_stop;
use crate::data::sources::RawDataset;
use crate::{Context, Error, Result};

/// MovieLens' words for an item without genres.
const NO_GENRES: [&str; 2] = ["(no genres listed)", "unknown"];

/// Number of items whose neighbours are computed at a time.
const TOGETHER: usize = 4096;

/// The texts and tags of an item.
struct ItemDescription<'a> {
    id: &'a str,
    title: &'a str,
    genres: Vec<&'a str>,
    /// Tags in lower case, the most frequent first.
    tags: Vec<String>,
    plot: Option<&'a str>,
    director: Option<&'a str>,
    actors: Option<&'a str>,
}

impl<'a> ItemDescription<'a> {
    fn new(raw: &'a RawDataset, item: u32) -> Self {
        let attribute = |name: &str| raw.catalogue.attributes.get(name)?.get(item as usize)?.as_deref();
        let parts =
            |name| attribute(name).unwrap_or_default().split('|').map(str::trim).filter(|part| !part.is_empty());
        let mut seen = HashSet::new();
        Self {
            id: raw.log.items.get(item),
            title: raw.catalogue.title(item).unwrap_or_default(),
            genres: parts("genres").filter(|genre| !NO_GENRES.contains(genre)).collect(),
            tags: parts("tags").map(str::to_lowercase).filter(|tag| seen.insert(tag.clone())).collect(),
            plot: attribute("plot"),
            director: attribute("director"),
            actors: attribute("actors"),
        }
    }

    fn long_description(&self, plot: &str) -> String {
        let mut sentences = vec![match (self.title, self.genres.is_empty()) {
            ("", true) => String::new(),
            ("", false) => format!("Listed under {}.", list(&self.genres)),
            (title, true) => format!("{title}."),
            (title, false) => format!("{title} is listed under {}.", list(&self.genres)),
        }];
        sentences.extend(self.director.map(|name| format!("It is directed by {name}.")));
        sentences.extend(self.actors.map(|names| format!("It stars {names}.")));
        sentences.push(plot.to_string());
        if !self.tags.is_empty() {
            sentences.push(format!("Viewers tagged it {}.", quote_all(&self.tags)));
        }
        sentences.retain(|sentence| !sentence.is_empty());
        sentences.join(" ")
    }

    /// Returns what both items have; `None` if nothing.
    fn common(&self, other: &Self) -> Option<String> {
        let genres: Vec<&str> = self.genres.iter().filter(|g| other.genres.contains(g)).copied().collect();
        let tags: Vec<String> = self.tags.iter().filter(|t| other.tags.contains(t)).cloned().collect();
        let mut sentences = Vec::new();
        if !genres.is_empty() {
            sentences.push(format!("Both are listed under {}.", list(&genres)));
        }
        if !tags.is_empty() {
            sentences.push(format!("Viewers tagged both {}.", quote_all(&tags)));
        }
        (!sentences.is_empty()).then(|| sentences.join(" "))
    }

    /// Returns what only one of the two items has; `None` if nothing.
    fn difference(&self, other: &Self) -> Option<String> {
        let mut sentences = Vec::new();
        for (which, of, without) in [("first", self, other), ("second", other, self)] {
            let genres: Vec<&str> = of.genres.iter().filter(|g| !without.genres.contains(g)).copied().collect();
            if !genres.is_empty() {
                sentences.push(format!("Only the {which} is listed under {}.", list(&genres)));
            }
            let tags: Vec<String> = of.tags.iter().filter(|t| !without.tags.contains(t)).cloned().collect();
            // An item that nobody tagged may still be what a tag says.
            if !tags.is_empty() && !without.tags.is_empty() {
                sentences.push(format!("Viewers tagged only the {which} {}.", quote_all(&tags)));
            }
        }
        (!sentences.is_empty()).then(|| sentences.join(" "))
    }
}

/// Joins names: "a", "a and b", "a, b and c".
fn list(names: &[&str]) -> String {
    match names {
        [start @ .., before, last] if !start.is_empty() => format!("{}, {before} and {last}", start.join(", ")),
        names => names.join(" and "),
    }
}

fn quote_all(tags: &[String]) -> String {
    let tags: Vec<String> = tags.iter().map(|tag| format!("\"{tag}\"")).collect();
    list(&tags.iter().map(String::as_str).collect::<Vec<_>>())
}

/// An item's nearest item and the one to compare it with, where there are such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Neighbours {
    nearest: Option<usize>,
    other: Option<usize>,
}

/// Genres and tags of items, and the items of each.
struct Features {
    /// Features of each item, ascending.
    of_items: Vec<Vec<u32>>,
    items: Vec<Vec<u32>>,
}

impl Features {
    fn new(described: &[ItemDescription]) -> Self {
        let mut numbers: HashMap<(bool, &str), u32> = HashMap::new();
        let mut items: Vec<Vec<u32>> = Vec::new();
        let of_items = described.iter().zip(0u32..).map(|(item, index)| {
            let genres = item.genres.iter().map(|genre| (false, *genre));
            let names = genres.chain(item.tags.iter().map(|tag| (true, tag.as_str())));
            let mut features: Vec<u32> = names
                .map(|name| {
                    let next = numbers.len() as u32;
                    *numbers.entry(name).or_insert(next)
                })
                .collect();
            features.sort_unstable();
            features.dedup();
            items.resize_with(numbers.len(), Vec::new);
            features.iter().for_each(|feature| items[*feature as usize].push(index));
            features
        });
        Self { of_items: of_items.collect(), items }
    }

    /// Returns the neighbours of an item.
    ///
    /// * `common`: a zero an item, as it is left.
    fn neighbours(&self, item: usize, common: &mut [u32]) -> Neighbours {
        let own = &self.of_items[item];
        for feature in own {
            self.items[*feature as usize].iter().for_each(|other| common[*other as usize] += 1);
        }
        let count = self.of_items.len();
        let others = || (item + 1..count).chain(0..item).filter(|other| common[*other] > 0);
        // Shared over joint features, compared as fractions.
        let mut nearest: Option<(usize, u64, u64)> = None;
        for other in others() {
            let shared = u64::from(common[other]);
            let joint = (own.len() + self.of_items[other].len()) as u64 - shared;
            if nearest.is_none_or(|(_, s, j)| shared * j > s * joint) {
                nearest = Some((other, shared, joint));
            }
        }
        let nearest = nearest.map(|(other, _, _)| other);
        let other = others().find(|other| Some(*other) != nearest);
        common.fill(0);
        Neighbours { nearest, other }
    }
}

/// Writes the rows about the items `order` of the raw data to a file that waits beside `path` for
/// [`files::persist`]; returns the number of rows of each task.
pub(super) fn write_text_tasks(
    raw: &RawDataset,
    order: &[u32],
    path: &Path,
) -> Result<(NamedTempFile, BTreeMap<String, usize>)> {
    let described: Vec<ItemDescription> = order.iter().map(|item| ItemDescription::new(raw, *item)).collect();
    let features = Features::new(&described);
    let file = files::temporary_beside(path)?;
    let mut writer = BufWriter::new(file);
    let mut counts = BTreeMap::new();
    let indices: Vec<usize> = (0..described.len()).collect();
    for part in indices.chunks(TOGETHER) {
        check_stop()?;
        let zeros = || vec![0u32; described.len()];
        let neighbours: Vec<Neighbours> =
            part.par_iter().map_init(zeros, |common, item| features.neighbours(*item, common)).collect();
        for (&index, neighbours) in part.iter().zip(neighbours) {
            let item = &described[index];
            let mut row = |task: &str, other: Option<&ItemDescription>, text: Option<String>| -> Result<()> {
                let Some(text) = text else { return Ok(()) };
                let items: Vec<&str> = std::iter::once(item.id).chain(other.map(|other| other.id)).collect();
                *counts.entry(task.to_string()).or_default() += 1;
                writeln!(writer, "{}", json!({"task": task, "items": items, "text": text})).context(path.display())
            };
            row("summary", None, item.plot.map(str::to_string))?;
            row("long description", None, item.plot.map(|plot| item.long_description(plot)))?;
            if let Some(nearest) = neighbours.nearest.map(|nearest| &described[nearest]) {
                row("common with nn", Some(nearest), item.common(nearest))?;
                row("diff than nn", Some(nearest), item.difference(nearest))?;
            }
            if let Some(other) = neighbours.other.map(|other| &described[other]) {
                row("similarities", Some(other), item.common(other))?;
            }
        }
    }
    if counts.is_empty() {
        return Err(Error::failed(format!(
            "{}: no item has genres, tags or a plot to make tasks of: give movies.dat, tags or a *plots*.dat file",
            path.display()
        )));
    }
    let file = writer.into_inner().map_err(|e| e.into_error()).context(path.display())?;
    Ok((file, counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description<'a>(id: &'a str, genres: &[&'a str], tags: &[&str]) -> ItemDescription<'a> {
        let tags = tags.iter().map(|tag| tag.to_string()).collect();
        ItemDescription { id, title: "", genres: genres.to_vec(), tags, plot: None, director: None, actors: None }
    }

    #[test]
    fn sentences() {
        let toys = ItemDescription {
            title: "Toy Story (1995)",
            director: Some("John Lasseter"),
            ..description("1", &["Animation", "Comedy", "Children's"], &["pixar", "toys"])
        };
        let bugs = description("2", &["Comedy", "Adventure", "Animation"], &["pixar"]);
        let drama = description("3", &["Drama"], &[]);
        assert_eq!(
            toys.long_description("A cowboy doll is jealous."),
            "Toy Story (1995) is listed under Animation, Comedy and Children's. It is directed by John Lasseter. \
             A cowboy doll is jealous. Viewers tagged it \"pixar\" and \"toys\"."
        );
        assert_eq!(drama.long_description("P."), "Listed under Drama. P.");
        assert_eq!(description("4", &[], &[]).long_description("P."), "P.");
        let common = "Both are listed under Animation and Comedy. Viewers tagged both \"pixar\".";
        assert_eq!(toys.common(&bugs).as_deref(), Some(common));
        assert_eq!(toys.common(&drama), None);
        let difference = "Only the first is listed under Children's. Viewers tagged only the first \"toys\". \
                          Only the second is listed under Adventure.";
        assert_eq!(toys.difference(&bugs).as_deref(), Some(difference));
        // Nobody tagged the drama: its lack of tags says nothing.
        let difference =
            "Only the first is listed under Comedy, Adventure and Animation. Only the second is listed under Drama.";
        assert_eq!(bugs.difference(&drama).as_deref(), Some(difference));
        assert_eq!(drama.difference(&drama), None);
    }

    #[test]
    fn neighbours_by_hand() {
        let items = [
            description("a", &["Comedy", "Drama"], &[]),
            description("b", &["Comedy"], &["Drama"]),
            description("c", &["Comedy", "Drama", "War"], &[]),
            description("d", &["Western"], &[]),
            description("e", &["Comedy", "Drama"], &[]),
        ];
        let features = Features::new(&items);
        let mut common = vec![0; items.len()];
        let mut of = |item| {
            let Neighbours { nearest, other } = features.neighbours(item, &mut common);
            (nearest, other)
        };
        // A tag is no genre: a shares 1 of 3 with b, 2 of 3 with c, all with e.
        assert_eq!(of(0), (Some(4), Some(1)));
        // b shares 1 of 3 with a and e, 1 of 4 with c: of the equal ones e follows first.
        assert_eq!(of(1), (Some(4), Some(2)));
        assert_eq!(of(2), (Some(4), Some(0)));
        assert_eq!(of(3), (None, None));
        assert_eq!(of(4), (Some(0), Some(1)));
    }
}

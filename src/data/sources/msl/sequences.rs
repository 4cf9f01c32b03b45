//! Joins users' windows to their interaction sequences.

use std::collections::HashMap;
use std::path::Path;

use super::rows::Row;
use crate::data::{UserLog, Window};
use crate::{Error, Result};

/// The windows of all files, from which users' sequences are built.
#[derive(Default)]
pub(super) struct SequenceBuilder {
    users: Vec<String>,
    index: HashMap<String, u32>,
    /// The rows of each file.
    pub(super) files: Vec<Vec<ReleasedWindow>>,
}

pub(super) struct ReleasedWindow {
    user: u32,
    pub(super) items: Vec<u32>,
    time: i64,
}

impl SequenceBuilder {
    /// Adds a row to the last file. Users are numbered in the order in which they first appear.
    pub(super) fn add(&mut self, row: Row, catalogue: &HashMap<&str, u32>, path: &Path) -> Result<()> {
        let mut items = Vec::with_capacity(row.items.len());
        for id in &row.items {
            let Some(&item) = catalogue.get(id.as_str()) else {
                return Err(Error::failed(format!(
                    "{}: line {}: item {id} has no title in id2name4Rec.json",
                    path.display(),
                    row.line
                )));
            };
            items.push(item);
        }
        let next = self.users.len() as u32;
        let user = *self.index.entry(row.user.clone()).or_insert(next);
        if user == next {
            self.users.push(row.user);
        }
        if let Some(file) = self.files.last_mut() {
            file.push(ReleasedWindow { user, items, time: row.time });
        }
        Ok(())
    }

    /// Joins each user's windows, by time and then by their order in the files, on the largest
    /// overlap of the sequence's tail with the window's head. A window's target is always a new
    /// interaction, the only one of the window whose time is known.
    pub(super) fn finish(self) -> (Vec<UserLog>, Vec<Vec<Window>>) {
        let mut order: Vec<(usize, usize)> = Vec::new();
        for (file, rows) in self.files.iter().enumerate() {
            order.extend((0..rows.len()).map(|row| (file, row)));
        }
        order.sort_by_key(|&(file, row)| self.files[file][row].time);

        let mut sequences: Vec<(Vec<u32>, Vec<Option<i64>>)> = vec![Default::default(); self.users.len()];
        let mut windows: Vec<Vec<Window>> =
            self.files.iter().map(|rows| vec![Window { user: 0, start: 0, len: 0 }; rows.len()]).collect();
        for (file, row) in order {
            let ReleasedWindow { user, items, time } = &self.files[file][row];
            let (sequence, times) = &mut sequences[*user as usize];
            let heads = (1..items.len()).rev().map(|n| items.split_at(n));
            let new = heads.into_iter().find(|(head, _)| sequence.ends_with(head));
            sequence.extend_from_slice(new.map_or(items.as_slice(), |(_, tail)| tail));
            times.resize(sequence.len(), None);
            if let Some(last) = times.last_mut() {
                *last = Some(*time);
            }
            windows[file][row] =
                Window { user: *user, start: (sequence.len() - items.len()) as u32, len: items.len() as u32 };
        }

        let mut first = Vec::with_capacity(sequences.len());
        let mut total = 0;
        for (sequence, _) in &sequences {
            first.push(total as u32);
            total += sequence.len();
        }
        for window in windows.iter_mut().flatten() {
            window.start += first[window.user as usize];
        }
        let logs = sequences
            .into_iter()
            .zip(self.users)
            .map(|((items, times), id)| UserLog { id, events: items.into_iter().zip(times).collect() });
        (logs.collect(), windows)
    }
}

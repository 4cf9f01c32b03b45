//! Recommendations for many users, into one Parquet file.
//!
//! Users are answered a part at a time. Each part is a file of its own in the folder `FILE.parts`,
//! whole or absent; at the end the parts are joined into FILE and the folder goes away. A call that
//! was interrupted goes on after the last whole part. Memory holds one part.

mod input;
mod parts;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use self::input::Users;
use self::parts::Parts;
use super::dir::CONFIG;
use super::prompt_selection::PromptSelection;
use super::request::{ItemRef, RecommendRequest, Recommendation};
use super::session::Session;
use crate::core::files::sha256;
use crate::core::progress::Progress;
use crate::{Context, Error, Result};

/// Users of a part, at most; fewer where each has many items.
const PART_USERS: usize = 128;
/// Rows of a part, about, at most.
const PART_ROWS: usize = 1 << 17;
/// Users that are answered between two steps of the progress bar.
const STEP: usize = 32;

/// Whom to recommend to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BulkUsers {
    /// All users of the corpus, after all of their interactions.
    All,
    /// The rows of a file: JSON lines (`.jsonl`, `.ndjson`) or Parquet, with `user` and `history`,
    /// a list of item ids, oldest first. Other keys and columns are passed over.
    File(PathBuf),
}

/// A request of recommendations for many users.
#[derive(Debug, Clone)]
pub struct BulkRequest {
    /// Whom to recommend to.
    pub users: BulkUsers,
    /// The prompt, of a run with prompt sets.
    pub prompt: PromptSelection,
    /// Items for each user, at least 1.
    pub k: usize,
    /// The Parquet file to write: `user`, `rank`, `item`, `title`, `score`; in the users' order.
    pub out: PathBuf,
}

/// Summary of the written file.
#[derive(Debug, Clone, Serialize)]
pub struct BulkReport {
    /// The file.
    pub out: PathBuf,
    /// Its users.
    pub users: usize,
    /// Its rows.
    pub rows: usize,
    /// Users that an earlier call had answered.
    pub resumed: usize,
    /// Users whose prompt shows the history without its oldest items, of those of this call.
    pub shortened: usize,
    /// Seconds of this call's work.
    pub seconds: f64,
    /// Users that this call answered in a second.
    pub users_per_second: f64,
}

/// A user, and the history to recommend after.
#[derive(Debug, Clone, PartialEq, Eq)]
struct UserHistory {
    user: String,
    /// Ids of items, oldest first.
    history: Vec<String>,
}

impl Session {
    /// Recommends items to many users and writes them to a file. A call that was interrupted goes
    /// on where it stopped, if the run, the users and the request are the same.
    ///
    /// # Errors
    /// A row that cannot be answered, by its number, before any is answered; parts of another
    /// request beside the file; those of [`Session::recommend`].
    pub fn recommend_users(&self, request: &BulkRequest) -> Result<BulkReport> {
        let users = Users::open(&request.users)?;
        let total = self.check_users(&users, request)?;
        let part_users = (PART_ROWS / request.k.max(1)).clamp(1, PART_USERS);
        let parts = Parts::open(&request.out, &self.bulk_plan(&users, request, total)?)?;
        let resumed = (parts.count()? * part_users).min(total);
        let progress = Progress::new("users", total);
        let started = Instant::now();
        let (mut done, mut shortened) = (resumed, 0);
        let mut rows = users.rows(self, resumed)?;
        while done < total {
            let wanted = part_users.min(total - done);
            let mut part = Vec::with_capacity(wanted);
            while part.len() < wanted {
                let mut step: Vec<(u64, UserHistory)> = Vec::with_capacity(STEP);
                while step.len() < STEP.min(wanted - part.len()) {
                    step.push(rows.next().unwrap_or_else(|| Err(users.changed()))?);
                }
                let requests: Vec<RecommendRequest> =
                    step.iter().map(|(_, row)| self.request_of(row, request)).collect::<Result<_>>()?;
                for ((row, user), answer) in step.into_iter().zip(self.recommend_all(&requests)) {
                    let answer = answer.context(users.place(row))?;
                    shortened += usize::from(!answer.notes.is_empty());
                    part.push((user.user, answer.items));
                }
                progress.set(done + part.len());
            }
            parts.add(done / part_users, &part)?;
            done += part.len();
        }
        let seconds = started.elapsed().as_secs_f64();
        let rows = parts.join(&request.out)?;
        let users_per_second = (total - resumed) as f64 / seconds.max(1e-9);
        Ok(BulkReport { out: request.out.clone(), users: total, rows, resumed, shortened, seconds, users_per_second })
    }

    /// Checks every row, and returns their number.
    fn check_users(&self, users: &Users, request: &BulkRequest) -> Result<usize> {
        let mut count = 0;
        for row in users.rows(self, 0)? {
            let (row, user) = row?;
            self.request_of(&user, request)
                .and_then(|request| self.check_request(&request))
                .context(users.place(row))?;
            count += 1;
        }
        match count {
            0 => Err(Error::failed(format!("{}: there is no user", users.name()))),
            _ => Ok(count),
        }
    }

    fn request_of(&self, row: &UserHistory, request: &BulkRequest) -> Result<RecommendRequest> {
        Ok(RecommendRequest {
            history: row.history.iter().cloned().map(ItemRef::Id).collect(),
            user: self.shows_user(&request.prompt)?.then(|| row.user.clone()),
            prompt: request.prompt.clone(),
            k: request.k,
            ..RecommendRequest::default()
        })
    }

    /// Returns what a call must have in common with the one that it goes on with.
    fn bulk_plan(&self, users: &Users, request: &BulkRequest, total: usize) -> Result<String> {
        let read = |name: &str| {
            let path = self.dir.join(name);
            fs::read(&path).map(|bytes| sha256(&bytes)).context(path.display())
        };
        let plan = serde_json::json!({
            "run": read(CONFIG)?,
            "identity": read("identity.json")?,
            "step": self.step,
            "prior_weight": self.context.prior.as_ref().map(|prior| prior.weight),
            "prompt": format!("{:?}", request.prompt),
            "k": request.k,
            "users": users.digest(),
            "count": total,
        });
        serde_json::to_string_pretty(&plan).context("JSON")
    }
}

/// The answers of a part: users in their order, and the items of each.
type Part = [(String, Vec<Recommendation>)];

/// Returns the folder of a file's parts.
fn parts_dir(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".parts");
    PathBuf::from(name)
}

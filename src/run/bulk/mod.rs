//! Recommendations for many users, into one Parquet file.
//!
//! Users are answered a part at a time. Each part is a file of its own in the folder `FILE.parts`,
//! whole or absent; at the end the parts are joined into FILE and the folder goes away. A call that
//! was interrupted answers only the users whose part is not there. Memory holds one part for each
//! device.

mod input;
mod parts;

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use self::input::{Rows, Users};
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

/// Recommends items to many users and writes them to a file. A call that was interrupted goes on
/// where it stopped, if the run, the users and the request are the same.
///
/// * `sessions`: one, or copies of it on several devices ([`Session::clone_to_device`]), each of
///   which takes the next part when it is done with one. The file is the same.
///
/// # Errors
/// A row that cannot be answered, by its number, before any is answered; parts of another request
/// beside the file; those of [`Session::recommend`].
pub fn recommend_users(sessions: &[Session], request: &BulkRequest) -> Result<BulkReport> {
    let session = sessions.first().ok_or_else(|| Error::usage("there is no model to recommend with"))?;
    let users = Users::open(&request.users)?;
    let total = session.check_users(&users, request)?;
    let parts = Parts::open(&request.out, &session.bulk_plan(&users, request, total)?)?;
    let work = PartWork {
        request,
        users: &users,
        parts: &parts,
        total,
        part_users: (PART_ROWS / request.k.max(1)).clamp(1, PART_USERS),
        source: Mutex::new(Source { rows: users.rows(session)?, next: 0 }),
        progress: Progress::new("users", total),
        done: AtomicUsize::new(0),
        shortened: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    };
    let mut resumed = 0;
    for part in 0..work.part_count() {
        resumed += if parts.has(part)? { work.users_of(part) } else { 0 };
    }
    work.done.store(resumed, Relaxed);
    let started = Instant::now();
    work.run(sessions)?;
    let seconds = started.elapsed().as_secs_f64();
    let (part_count, shortened) = (work.part_count(), work.shortened.load(Relaxed));
    drop(work);
    let rows = parts.join(&request.out, part_count)?;
    let users_per_second = (total - resumed) as f64 / seconds.max(1e-9);
    Ok(BulkReport { out: request.out.clone(), users: total, rows, resumed, shortened, seconds, users_per_second })
}

/// State that the devices share which answer the users.
struct PartWork<'a> {
    request: &'a BulkRequest,
    users: &'a Users,
    parts: &'a Parts,
    /// Number of users.
    total: usize,
    /// Users of each part but the last.
    part_users: usize,
    source: Mutex<Source<'a>>,
    progress: Progress,
    /// Users that are answered.
    done: AtomicUsize,
    shortened: AtomicUsize,
    stop: AtomicBool,
}

/// A row's number, from 1, and its user.
type NumberedRow = (u64, UserHistory);

/// Users that nobody has taken yet.
struct Source<'a> {
    rows: Rows<'a>,
    /// The part of the next row.
    next: usize,
}

impl PartWork<'_> {
    fn part_count(&self) -> usize {
        self.total.div_ceil(self.part_users)
    }

    fn users_of(&self, part: usize) -> usize {
        self.part_users.min(self.total - part * self.part_users)
    }

    /// Answers all users that have no part yet.
    fn run(&self, sessions: &[Session]) -> Result<()> {
        let work = |session| self.add_parts(session).inspect_err(|_| self.stop.store(true, Relaxed));
        std::thread::scope(|scope| {
            let threads: Vec<_> = sessions[1..].iter().map(|session| scope.spawn(move || work(session))).collect();
            let first = work(&sessions[0]);
            let others = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            std::iter::once(first).chain(others.collect::<Vec<_>>()).collect()
        })
    }

    /// Takes one part after another, until there is none or another device has failed.
    fn add_parts(&self, session: &Session) -> Result<()> {
        while !self.stop.load(Relaxed)
            && let Some((number, rows)) = self.next_part()?
        {
            let mut part = Vec::with_capacity(rows.len());
            for step in rows.chunks(STEP) {
                let requests: Vec<RecommendRequest> =
                    step.iter().map(|(_, row)| session.request_of(row, self.request)).collect::<Result<_>>()?;
                for ((row, user), answer) in step.iter().zip(session.recommend_all(&requests)) {
                    let answer = answer.context(self.users.place(*row))?;
                    self.shortened.fetch_add(usize::from(!answer.notes.is_empty()), Relaxed);
                    part.push((user.user.clone(), answer.items));
                }
                self.progress.set(self.done.fetch_add(step.len(), Relaxed) + step.len());
            }
            self.parts.add(number, &part)?;
        }
        Ok(())
    }

    /// Returns the number and the rows of the next part that is not there yet.
    fn next_part(&self) -> Result<Option<(usize, Vec<NumberedRow>)>> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        while source.next < self.part_count() {
            let part = source.next;
            source.next += 1;
            let rows = source.rows.by_ref().take(self.users_of(part)).collect::<Result<Vec<_>>>()?;
            if rows.len() < self.users_of(part) {
                return Err(self.users.changed());
            }
            if !self.parts.has(part)? {
                return Ok(Some((part, rows)));
            }
        }
        Ok(None)
    }
}

impl Session {
    /// Checks every row, and returns their number.
    fn check_users(&self, users: &Users, request: &BulkRequest) -> Result<usize> {
        let mut count = 0;
        for row in users.rows(self)? {
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
            "prior_weights": self.context.prior.as_ref().map(|prior| prior.weights),
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

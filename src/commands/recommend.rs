//! `itemlm recommend RUN_DIR --history TITLE …`, and for many users `--input FILE` or `--users all`

use std::path::{Path, PathBuf};

use crate::device::BackendChoice;
use crate::run::dir::{check_ranks, read_config};
use crate::run::ranking_check::check_ranking;
use crate::run::verified_devices::{verified_device, verified_devices};
use crate::run::{
    BulkReport, BulkRequest, BulkUsers, ItemRef, PromptSelection, RecommendRequest, Recommendations, Session,
};
use crate::{Error, ErrorKind, Result};

/// Options of `recommend`.
#[derive(Debug, Clone)]
pub struct RecommendOptions {
    /// The run directory.
    pub run: PathBuf,
    /// Titles of the history, oldest first.
    pub history: Vec<String>,
    /// The user's id in the source, for prompts that show users.
    pub user: Option<String>,
    /// The prompt, for a run with prompt sets.
    pub prompt: PromptSelection,
    /// Number of items.
    pub k: usize,
    /// The device.
    pub backend: BackendChoice,
    /// Whether a GPU's scores are taken for right without a comparison with the CPU's.
    pub trust_device: bool,
}

/// Returns the `k` best items after a history of titles.
///
/// # Errors
/// Those of [`Session::open`] and [`Session::recommend`]; usage errors name the flags.
pub fn recommend(options: RecommendOptions) -> Result<Recommendations> {
    if options.k == 0 {
        return Err(Error::usage("recommend needs a -k of at least 1"));
    }
    let device = verified_device(&options.backend)?;
    check_ranks(&options.run, &read_config(&options.run)?)?;
    let session = Session::open(&options.run, &device)?;
    check_ranking(&session, std::slice::from_ref(&session.model), &options.backend, options.trust_device)?;
    let request = RecommendRequest {
        history: options.history.into_iter().map(ItemRef::Title).collect(),
        user: options.user,
        prompt: options.prompt,
        k: options.k,
        ..RecommendRequest::default()
    };
    session.recommend(&request).map_err(|error| with_flags(&options.run, error))
}

/// Options of `recommend` for many users.
#[derive(Debug, Clone)]
pub struct BulkOptions {
    /// The run directory.
    pub run: PathBuf,
    /// Whom to recommend to.
    pub users: BulkUsers,
    /// The prompt, of a run with prompt sets.
    pub prompt: PromptSelection,
    /// Number of items for each user.
    pub k: usize,
    /// The Parquet file to write.
    pub out: PathBuf,
    /// The devices; several share the users.
    pub backend: BackendChoice,
    /// Whether a GPU's scores are taken for right without a comparison with the CPU's.
    pub trust_device: bool,
}

/// Writes the `k` best items of many users to a file.
///
/// # Errors
/// Those of [`Session::open`] and [`crate::run::recommend_users`].
pub fn recommend_users(options: BulkOptions) -> Result<BulkReport> {
    let BulkOptions { run, users, prompt, k, out, backend, trust_device } = options;
    if out.extension().is_none_or(|ending| ending != "parquet") {
        return Err(Error::usage(format!("--out {}: it is a .parquet file that is written", out.display())));
    }
    check_ranks(&run, &read_config(&run)?)?;
    let devices = verified_devices(&backend)?;
    let mut sessions = vec![Session::open(&run, &devices[0])?];
    for device in &devices[1..] {
        sessions.push(sessions[0].clone_to_device(device)?);
    }
    let models: Vec<_> = sessions.iter().map(|session| session.model.clone()).collect();
    check_ranking(&sessions[0], &models, &backend, trust_device)?;
    crate::run::recommend_users(&sessions, &BulkRequest { users, prompt, k, out })
}

/// Adds to a usage error the flags of the request.
fn with_flags(run: &Path, error: Error) -> Error {
    match error.kind() {
        ErrorKind::Usage => Error::usage(format!(
            "{}: {error}; the request is made of --history TITLE, --user ID, --task NAME and --prompt",
            run.display()
        )),
        _ => error,
    }
}

//! `itemlm serve RUN_DIR`

use std::path::PathBuf;
use std::sync::Arc;

use crate::Result;
use crate::config::settings_table;
use crate::core::log::log;
use crate::data::Manifest;
use crate::device::BackendChoice;
use crate::rankers::RankerSpec;
use crate::run::Session;
use crate::run::dir::{check_ranks, read_config};
use crate::run::ranking_check::check_ranking;
use crate::run::verified_devices::{check_one_device, verified_device};
use crate::serve;
use crate::serve::{BaselineEngine, Engine, RunEngine, ServeOptions};

/// The model that answers.
#[derive(Debug, Clone)]
pub enum ServedModel {
    /// A trained run.
    Run {
        /// Its directory.
        dir: PathBuf,
        /// Whether a GPU's scores are taken for right without a comparison with the CPU's.
        trust_device: bool,
    },
    /// A ranker without a language model.
    Baseline {
        /// Its name, or those of a mixture's parts joined by `+`.
        name: String,
        /// Settings as `key=value`, over their defaults.
        set: Vec<String>,
        /// The corpus directory.
        corpus: PathBuf,
    },
}

/// Serves a model over HTTP until SIGTERM or SIGINT.
///
/// # Errors
/// Faults of `model` that can be seen at once, before the server listens; those of
/// [`serve::serve`].
pub fn serve(model: ServedModel, backend: BackendChoice, options: &ServeOptions) -> Result<()> {
    check_one_device(&backend)?;
    // What this build or machine lacks is refused before the server listens.
    backend.devices()?;
    match model {
        ServedModel::Run { dir, trust_device } => {
            check_ranks(&dir, &read_config(&dir)?)?;
            serve::serve(options, move || {
                let session = Session::open(&dir, &verified_device(&backend)?)?;
                check_ranking(&session, std::slice::from_ref(&session.model), &backend, trust_device)?;
                Ok(Arc::new(RunEngine::new(session)?) as Arc<dyn Engine>)
            })
        }
        ServedModel::Baseline { name, set, corpus } => {
            let spec = RankerSpec::new(&name, settings_table(&set)?)?;
            Manifest::read(&corpus)?;
            serve::serve(options, move || {
                let engine = BaselineEngine::fit(&spec, &corpus, &backend, &mut |line| log(line))?;
                Ok(Arc::new(engine) as Arc<dyn Engine>)
            })
        }
    }
}

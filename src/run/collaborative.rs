//! Collaborative models, trained on a corpus.

use std::path::Path;

use burn::DispatchDevice;

use super::verified_devices::verified_device;
use crate::data::{Corpus, Split};
use crate::device::{BackendChoice, Concrete};
use crate::evaluate::{evaluate_collaborative, summarise};
use crate::rankers::{Model, Settings, Trained, train};
use crate::{Context, Result};

/// Trains a collaborative model; the corpus's validation windows choose its epoch.
///
/// # Errors
/// Those of [`train`]; several devices.
pub(crate) fn fit(
    settings: &Settings,
    corpus: &Corpus,
    corpus_dir: &Path,
    backend: &BackendChoice,
    say: &mut dyn FnMut(&str),
) -> Result<Trained<Concrete>> {
    let device = DispatchDevice::autodiff(verified_device(backend)?);
    let mut validate = |model: &Model<Concrete>| Ok(valid_ndcg(model, corpus));
    train::<Concrete>(settings, corpus, &device, &mut validate, say).context(corpus_dir.display())
}

/// Returns the NDCG@10 on the validation windows, where there are any.
pub(crate) fn valid_ndcg(model: &Model<Concrete>, corpus: &Corpus) -> Option<f64> {
    let outcomes = evaluate_collaborative(model, corpus, Split::Valid, None);
    summarise(&outcomes, 0).all.metric("ndcg@10")
}

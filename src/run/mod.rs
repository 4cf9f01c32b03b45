//! Runs: the run directory, the inputs that a run file names, training, and sessions that answer
//! requests.

pub(crate) mod align_data;
pub(crate) mod align_task;
pub(crate) mod bulk;
pub(crate) mod dataset;
pub(crate) mod dir;
pub(crate) mod entities;
pub(crate) mod evaluated;
pub(crate) mod identity;
pub(crate) mod inputs;
pub(crate) mod item_index;
pub(crate) mod live_items;
pub(crate) mod memory;
pub(crate) mod out_of_memory;
pub(crate) mod precision;
pub(crate) mod prior_choice;
pub(crate) mod prior_fit;
pub(crate) mod prompt_context;
pub(crate) mod prompt_selection;
pub(crate) mod qformer_artifact;
pub(crate) mod rank_windows;
pub(crate) mod request;
pub(crate) mod samples;
pub(crate) mod self_check;
pub(crate) mod session;
pub(crate) mod text_tasks;
pub(crate) mod training;
pub(crate) mod verified_devices;

pub use align_data::AlignIdentity;
pub use bulk::{BulkReport, BulkRequest, BulkUsers};
pub use evaluated::{EvaluatedRun, evaluation_file, write_evaluation, write_rankings};
pub use live_items::rank_live_items;
pub use memory::{LargestMicroBatch, Memory};
pub(crate) use out_of_memory::catch_out_of_memory;
pub use prior_choice::{ChosenPrior, TriedWeight};
pub use prior_fit::PriorFit;
pub use prompt_selection::PromptSelection;
pub use qformer_artifact::{AlignedConfig, open_aligned};
pub use rank_windows::rank_windows;
pub use request::{ItemRef, RankRequest, RecommendRequest, Recommendation, Recommendations};
pub use self_check::Check;
pub use session::Session;
pub use text_tasks::TextTaskData;
pub use training::{FirstLast, TrainOptions};

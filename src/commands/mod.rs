//! The commands, one file each.

pub(crate) mod align;
pub(crate) mod baseline;
pub(crate) mod cf;
pub(crate) mod compare;
pub(crate) mod configs;
pub(crate) mod doctor;
pub(crate) mod evaluate;
pub(crate) mod experiment;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod plan;
pub(crate) mod profile;
pub(crate) mod quickstart;
pub(crate) mod recommend;
pub(crate) mod report;
pub(crate) mod score;
pub(crate) mod serve;
pub(crate) mod train;
pub(crate) mod warm;

pub use align::{AlignReport, align};
pub use baseline::{BaselineOptions, BaselineReport, baseline};
pub use cf::{CfOptions, CfReport, cf};
pub use compare::compare;
pub use configs::{CheckReport, check_config, shipped_config};
pub use doctor::{BackendReport, DoctorReport, Host, Status, doctor};
pub use evaluate::{EvaluateOptions, EvaluateReport, Evaluation, TaskEvaluation, TextEvaluation, evaluate};
pub use experiment::{PAGE, experiment};
pub use inspect::{
    Bin, Distribution, ExampleWindow, InspectOptions, Inspection, LabelledToken, MASKED, Popularity, Spread, Titles,
    TopShare, UnseenCounts, inspect,
};
pub use merge::merge;
pub use plan::{PlanReport, plan};
pub use profile::{PartTime, ProfileReport, profile};
pub use quickstart::{QuickstartReport, quickstart};
pub use recommend::{BulkOptions, RecommendOptions, recommend, recommend_users};
pub use report::report;
pub use score::{ScoreOptions, score};
pub use serve::{ServedModel, serve};
pub use train::{TrainReport, train};
pub use warm::{WarmReport, WarmStep, warm};

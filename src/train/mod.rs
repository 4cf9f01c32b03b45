//! Training on burn-train: one optimiser step at a time, exact in every split of it into
//! micro-batches, resumable at any step.

mod alignment;
mod checkpoint;
mod clip;
mod dashboard;
mod data_parallel;
mod decay;
mod memory;
mod mixing;
mod optimizer;
mod profile;
mod samples;
mod schedule;
mod step;
mod strategy;

pub use alignment::{ItemTextWeights, WeightedLoss, item_text_losses, pair_loss};
pub use checkpoint::{Best, Checkpoints, ENCODER, Progress, Trained};
pub use clip::clip_grad_norm;
pub use dashboard::{Ui, restore_terminal};
pub use decay::WeightDecay;
pub use memory::{MemoryEstimator, ParameterCount, RankingBytes, StepBytes, WeightBytes};
pub use mixing::mix;
pub use optimizer::{AdamW, adamw};
pub use profile::{ProfiledStep, profile};
pub use samples::Samples;
pub use schedule::{CosineSchedule, LinearSchedule};
pub use step::{Step, StepOutput, TrainableModel, train_step, validation_step};
pub use strategy::{Outcome, Run, Validate, check_device_alive, run, truncate_metrics};

//! Training: one loop for everything that is trained by optimiser steps ([`train`], [`Task`]),
//! exact in every split of a step into micro-batches and over devices, resumable at any step.

mod alignment;
mod checkpoint;
mod dashboard;
mod data_parallel;
mod gradient_probe;
mod guard;
mod language_model;
mod memory;
mod metrics_log;
mod mixing;
mod optimizer;
mod profile;
mod samples;
mod schedule;
mod step;
mod tensorboard;
mod training_loop;

pub use alignment::{ItemTextWeights, WeightedLoss, item_text_losses, pair_loss};
pub use checkpoint::{Best, Checkpoints, ENCODER, Progress, TrainedWeights};
pub use dashboard::{Ui, restore_terminal};
pub use gradient_probe::{GradientProbe, TensorGradient, probe_gradients};
pub use guard::{check_device_alive, check_finite};
pub use language_model::{Run, Validate, ValidationScore, run};
pub use memory::{MemoryEstimator, ParameterCount, RankingBytes, StepBytes, WeightBytes};
pub use metrics_log::MetricsLog;
pub use mixing::mix;
pub use optimizer::{AdamW, WeightDecay, adamw, clip_grad_norm};
pub use profile::{ProfiledStep, profile};
pub use samples::Samples;
pub use schedule::{CosineSchedule, LinearSchedule};
pub use step::{Step, StepOutput, train_step, validation_step};
pub use tensorboard::{TENSORBOARD, TensorBoard};
pub use training_loop::{LoopOptions, METRICS, Outcome, Score, StepReport, Task, Validation, train};

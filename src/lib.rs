//! itemlm tunes a language model into a recommender.
//!
//! The path of the data is the order of the modules, and none knows of those after it: [`data`] →
//! [`text`] → [`batch`] → [`model`] → [`loss`] → [`train`] → [`rankers`] → [`decode`] →
//! [`evaluate`]. [`run`] opens and keeps runs, [`serve`] answers requests over HTTP, [`experiment`]
//! makes grids of runs, [`report`] pages on them; [`commands`] are one a file; [`cli`] parses the
//! command line.

#![warn(clippy::too_many_lines)]

pub mod batch;
pub mod cli;
pub mod commands;
pub mod config;
pub mod core;
pub mod data;
pub mod decode;
pub mod device;
pub mod evaluate;
pub mod experiment;
pub mod kernels;
pub mod loss;
pub mod model;
pub mod rankers;
pub mod report;
pub mod run;
pub mod serve;
pub mod tensor;
pub mod text;
pub mod train;

pub use crate::core::error::{Context, Error, ErrorKind, Result};

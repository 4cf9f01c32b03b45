//! itemlm tunes a language model into a recommender.
//!
//! The path of the data is the order of the modules, and none knows of those after it:
//! [`data`] → [`text`] → [`prior`] → [`batch`] → [`model`] → [`loss`] → [`train`] → [`cf`] → [`decode`] → [`evaluate`].
//! [`recipes`] put them together, one a command; [`cli`] parses the commands.

pub mod backend;
pub mod batch;
pub mod cf;
pub mod cli;
pub mod config;
pub mod data;
pub mod decode;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod log;
pub mod loss;
pub mod machine;
pub mod model;
pub mod prior;
pub mod profile;
pub mod recipes;
pub mod text;
pub mod train;

pub use error::{Context, Error, Result};

//! itemlm tunes a language model into a recommender.
//!
//! The path of the data is the order of the modules, and none knows of those after it:
//! [`data`] → [`text`] → [`batch`] → [`model`] → [`loss`] → [`train`] → [`decode`] → [`evaluate`].

pub mod data;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod model;
pub mod text;

pub use error::{Context, Error, Result};

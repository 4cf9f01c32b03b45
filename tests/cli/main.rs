//! The real binary, on a small data set in MSL's layout and a tiny Llama that the tests make themselves.

mod disk;
mod lab;
mod pipeline;
mod prior;
mod refusals;
mod resume;

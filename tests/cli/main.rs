//! The real binary, on a small data set in MSL's layout and a tiny Llama that the tests make themselves.

mod align;
mod disk;
mod ilm;
mod inspect;
mod lab;
mod pipeline;
mod prior;
mod refusals;
mod resume;

//! The real binary, on a small data set in MSL's layout and a tiny Llama that the tests make
//! themselves.

mod align;
mod bulk;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod configs;
mod devices;
mod disk;
mod doctor;
mod experiment;
mod ilm;
mod inspect;
mod lab;
mod memory;
mod models;
mod openp5;
mod page;
mod pipeline;
mod precision;
mod prior;
mod profile;
mod refusals;
mod resume;
mod serve;
mod serve_catalogue;
mod serve_clients;
mod serve_faults;
mod server;
mod session;
mod text_tasks;
mod twins;

//! Experiments: a grid of runs in one file, and the table that comes of it.
//!
//! A cell is a combination of the axes' values; it has a run for each seed. Every run is trained
//! and evaluated by child processes of this program.

mod axes;
mod cell;
mod config;
mod grid;
mod inputs;
mod live;
mod process;
mod results;
mod tables;

pub(crate) use cell::State;
pub use config::{Cell, CellRun, EvaluateKeys, ExperimentConfig};
pub use grid::{Grid, GridOptions};
pub use results::{
    ExperimentReport, Interval, NotCompared, PRIMARY, RESULTS, Row, RunFiles, RunResult, Spread, Status, run_report,
};
pub(crate) use tables::{COLUMNS, PRIMARY_COLUMN, Standing, TableRow, legend, table_rows, unfinished};

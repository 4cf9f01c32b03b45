//! `itemlm serve`

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::arguments::positive;
use crate::Result;
use crate::commands::{self, ServedModel};
use crate::device::BackendChoice;
use crate::serve::{LogFormat, ServeOptions};

/// Arguments of `itemlm serve`.
#[derive(Args)]
pub(super) struct ServeArgs {
    /// The run directory; with --baseline the corpus directory
    #[arg(value_name = "RUN_DIR")]
    path: PathBuf,
    /// Serve a ranker without a language model, of those that `itemlm baseline` has
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// With --baseline als, bpr, sasrec: another value of a setting
    #[arg(long, value_name = "KEY=VALUE", requires = "baseline")]
    set: Vec<String>,
    /// The address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// The port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s
    /// list
    #[arg(long, value_name = "BACKEND[:DEVICE]", default_value = "cpu")]
    backend: BackendChoice,
    /// Do not compare a GPU's scores with the CPU's before the first answer
    #[arg(long, conflicts_with = "baseline")]
    trust_device: bool,
    /// Recommend the items of this file in place of the training catalogue: .csv, .tsv, .jsonl or
    /// .parquet with id and title; POST /v1/reload and SIGHUP read it anew
    #[arg(long, value_name = "FILE")]
    items: Option<PathBuf>,
    /// Ask clients for one of the keys in this file, one a line, as Authorization: Bearer KEY
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// How many requests may wait; further ones are refused with 429
    #[arg(long, default_value_t = 256, value_parser = positive)]
    queue: usize,
    /// Seconds after which a request without an answer is given up with 504
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// How the log on stderr looks; RUST_LOG says how much of it there is
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormatName,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormatName {
    Text,
    Json,
}

impl ServeArgs {
    pub(super) fn run(self) -> Result<()> {
        let options = ServeOptions {
            host: self.host,
            port: self.port,
            items: self.items,
            api_key_file: self.api_key_file,
            queue: self.queue,
            timeout: Duration::from_secs(self.timeout),
            log_format: match self.log_format {
                LogFormatName::Text => LogFormat::Text,
                LogFormatName::Json => LogFormat::Json,
            },
        };
        let model = match self.baseline {
            None => ServedModel::Run { dir: self.path, trust_device: self.trust_device },
            Some(name) => ServedModel::Baseline { name, set: self.set, corpus: self.path },
        };
        commands::serve(model, self.backend, &options)
    }
}

//! The command line: what users type.

use std::path::PathBuf;

use clap::Args;

/// Where the relay's settings and state are.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State directory
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// `run`: every flag as typed; none = not given (environment, file and default follow).
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub place: Place,
    #[arg(long, value_name = "ADDR")]
    pub wireguard_listen: Vec<String>,
    #[arg(long, value_name = "HOST:PORT")]
    pub endpoint: Vec<String>,
    #[arg(long, value_name = "ADDR|unix:PATH")]
    pub http_listen: Vec<String>,
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    #[arg(long, value_name = "URL")]
    pub registry: Option<String>,
    #[arg(long, value_name = "TIME")]
    pub drain_timeout: Option<String>,
    #[arg(long, value_name = "TIME")]
    pub drain_streams: Option<String>,
    #[arg(long, value_name = "TIME")]
    pub drain_delay: Option<String>,
}

/// `dev`.
#[derive(Debug, Clone, Default, Args)]
pub struct DevArgs {
    /// NAME=URL
    #[arg(long, value_name = "NAME=URL")]
    pub service: Vec<String>,
}

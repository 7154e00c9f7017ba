//! `backup` and `restore`.

use std::path::PathBuf;

use clap::Args;

use super::Place;

/// `backup`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BackupArgs {
    /// Where to write it; a backup that is there is replaced once the new one is whole
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The passphrase's file, or - for stdin [default: CULVERT_BACKUP_PASSPHRASE, the credential
    /// backup-passphrase, or asked on the terminal]
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Which relay.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// `restore`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The passphrase's file, or - for stdin [default: as for backup]
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Restore into a directory that is in use; its keys and registry are put aside in it
    #[arg(long)]
    pub(crate) force: bool,
    /// Where to.
    #[command(flatten)]
    pub(crate) place: Place,
}

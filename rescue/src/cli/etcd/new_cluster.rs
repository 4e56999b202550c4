//! What `rescue etcd rebuild` and `salvage` share: the sources, and what is asked of the new
//! cluster.

use std::path::PathBuf;

use super::sources::EtcdSources;
use crate::cli::args::Stop;
use crate::etcd::operations::rebuild::target::Target;

/// Reads a [`crate::plan::etcd::new_cluster::NewClusterRequest`] off the arguments of a command
/// that has these flags.
macro_rules! new_cluster_request {
    ($command:expr, $settings:expr, is_salvage: $is_salvage:expr) => {
        $crate::plan::etcd::new_cluster::NewClusterRequest {
            targets: &$command.member,
            declare_dead: &$command.declare_dead,
            bump: $command.bump,
            unproven: $command.unproven,
            is_salvage: $is_salvage,
            is_written_beside: $command.output.is_some(),
            dry_run: $command.dry_run,
            settings: $settings,
        }
    };
}
pub(super) use new_cluster_request;

/// What was named; nothing at all is enough where a file and the members are: then `is_file` is
/// true.
pub(super) fn sources(
    [disks, roots, data_dirs]: [&[PathBuf]; 3],
    targets: &[Target],
    is_file: bool,
    command: &str,
) -> Result<EtcdSources, Stop> {
    let is_nothing = disks.is_empty() && roots.is_empty() && data_dirs.is_empty();
    if is_nothing && is_file && !targets.is_empty() {
        return Ok(EtcdSources::default());
    }
    EtcdSources::new(disks, roots, data_dirs, command)
}

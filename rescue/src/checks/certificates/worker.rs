//! Nodes without the CA's key: who else in the run has it, and what to bring where nobody has.

use super::Judge;
use crate::pki::inventory::AuthorityState;
use crate::pki::profile::Authority;
use crate::pki::trust::{self, Found};
use crate::typed;

impl Judge<'_> {
    /// The key of this node's CA, on another node of the run.
    pub(super) fn lent(&self, authority: Authority) -> Option<Found<'_>> {
        let state = self.inventory.authorities.get(&authority);
        let own = match state {
            // What a control plane signs must hold before its own API server and etcd, which read the file.
            Some(state) if self.is_control_plane() || authority == Authority::Etcd => state.certificates.clone(),
            _ if authority == Authority::Cluster => trust::cluster_authorities(self.context.guest, self.inventory),
            _ => return None,
        };
        trust::find(&own, authority, self.context.peers)
    }

    /// Where the certificate was signed, when that was not here.
    pub(super) fn lent_by(&self, authority: Authority) -> Option<String> {
        let own = self.inventory.authorities.get(&authority).is_some_and(|state| state.signer.is_ok());
        let found = self.lent(authority).filter(|_| !own)?;
        Some(format!("signed with the CA key of {} ({}), which is only read", found.peer.name, found.peer.source))
    }

    /// What a worker's certificate takes, and how to bring it.
    pub(super) fn worker_advice(&self, state: Option<&AuthorityState>) -> String {
        let own = trust::cluster_authorities(self.context.guest, self.inventory);
        let own = trust::all_shown(&own);
        let worker = typed::guest(self.context.guest);
        let others: Vec<String> = trust::holders(Authority::Cluster, self.context.peers)
            .map(|found| {
                let ca = trust::shown(&found.signer.certificate);
                format!("{} ({}) holds the key of {ca}", found.peer.name, found.peer.source)
            })
            .collect();
        if !others.is_empty() {
            return format!(
                "Refused: this node trusts {own}, but {}: that is another cluster, and what it signs would be rejected here.\n\
                 Next, with the disk of a control plane of its own cluster: rescue repair {worker} --ca CONTROL-PLANE",
                others.join(", ")
            );
        }
        let key = state.map_or_else(|| "ca.key".to_owned(), |state| state.key_path.to_string());
        format!(
            "Signing it takes the CA's key, and a worker has none ({key}): it is on the control planes of its cluster, whose CA is {own}.\n\
             With the disk of one attached here too: rescue repair {worker} --ca CONTROL-PLANE    (only reads that disk; without --ca \
             both are repaired)\n\
             With the disks in two places: rescue certs request {worker} -o req.json    (no key leaves this disk; it says what to type there)\n\
             For many workers at once: rescue certs bundle --ca CONTROL-PLANE --workers NAME,NAME -o bundle.age    (one encrypted file with \
             new keys), then rescue certs install {worker} bundle.age"
        )
    }
}

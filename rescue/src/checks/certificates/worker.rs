//! Nodes without the CA's key: who else in the run has it, whether it may sign for this disk, and
//! what to bring where nobody has.

use super::Judge;
use crate::pki::cluster_ca::{self, Found};
use crate::pki::inventory::{AuthorityState, Signer};
use crate::pki::kubelet::KubeletClient;
use crate::pki::profile::Authority;
use crate::pki::trust::names::{Recorded, node_signature};
use crate::pki::trust::{Party, Permit, crossing};
use crate::pki::x509::certificate::Certificate;
use crate::typed;

/// With what to sign, and what the plan says of it.
#[derive(Debug)]
pub(super) struct Signing<'a> {
    pub(super) signer: &'a Signer,
    /// Whose key it is and why it may sign, where it is not this node's own. One line each.
    pub(super) remarks: Vec<String>,
}

impl<'a> Signing<'a> {
    /// With the key on this node.
    pub(super) fn own(signer: &'a Signer) -> Self {
        Self {
            signer,
            remarks: Vec::new(),
        }
    }

    fn lent(found: Found<'a>, permit: &Permit) -> Self {
        let whose = format!(
            "signed with the CA key of {} ({}), which is only read",
            found.peer.name, found.peer.source
        );
        Self {
            signer: found.signer,
            remarks: vec![whose, permit.words().to_owned()],
        }
    }
}

impl Judge<'_> {
    /// The certificates of the CA that this node's leaves must be signed by, as its disk says it.
    fn own_authorities(&self, authority: Authority) -> Vec<Certificate> {
        match self.inventory.authorities.get(&authority) {
            // What a control plane signs must hold before its own API server and etcd, which read
            // the file.
            Some(state) if self.is_control_plane() || authority == Authority::Etcd => {
                state.certificates.clone()
            }
            _ if authority == Authority::Cluster => {
                cluster_ca::cluster_authorities(self.context.guest, self.inventory)
            }
            _ => Vec::new(),
        }
    }

    /// The other nodes of the run that hold the key of this node's CA.
    pub(super) fn lenders(&self, authority: Authority) -> Vec<Found<'_>> {
        let own = self.own_authorities(authority);
        let is_own = |found: &Found<'_>| {
            own.iter()
                .any(|own| cluster_ca::is_same(own, &found.signer.certificate))
        };
        let mut all: Vec<Found<'_>> = cluster_ca::holders(authority, self.context.peers)
            .filter(is_own)
            .collect();
        // The CA that ends last, whatever the order of the disks.
        let rank = |found: &Found<'_>| {
            (
                found.signer.certificate.not_after,
                found.signer.certificate.der.clone(),
            )
        };
        all.sort_by_key(|found| std::cmp::Reverse(rank(found)));
        all
    }

    /// Another node's key that may sign a leaf for this one. `None` where nobody has one.
    ///
    /// # Errors
    /// What this disk does not prove.
    pub(super) fn lent_for_leaf(
        &self,
        authority: Authority,
    ) -> Option<Result<Signing<'_>, String>> {
        let permit = |found: &Found<'_>| {
            crossing::leaf_signature(
                self.party,
                &found.peer.party,
                authority,
                &found.signer.certificate,
            )
        };
        self.first_permitted(authority, permit)
    }

    /// Another node's key that may sign for this one's kubelet, under the name that `client` says.
    /// `None` where nobody has one.
    ///
    /// # Errors
    /// What this disk does not prove.
    pub(super) fn lent_for_kubelet(
        &self,
        client: &KubeletClient,
    ) -> Option<Result<Signing<'_>, String>> {
        let name = client.node_name.as_ref().ok()?;
        let others: Vec<&Party> = self.context.peers.iter().map(|peer| &peer.party).collect();
        let permit = |found: &Found<'_>| {
            let recorded = self.recorded(name, &found.signer.certificate);
            node_signature(
                self.party,
                name,
                &found.signer.certificate,
                &others,
                &recorded,
            )
        };
        self.first_permitted(Authority::Cluster, permit)
    }

    fn first_permitted(
        &self,
        authority: Authority,
        permit: impl Fn(&Found<'_>) -> Result<Permit, crate::pki::trust::Unproven>,
    ) -> Option<Result<Signing<'_>, String>> {
        let mut refused = None;
        for found in self.lenders(authority) {
            match permit(&found) {
                Ok(permit) => return Some(Ok(Signing::lent(found, &permit))),
                Err(unproven) => refused = refused.or(Some(unproven)),
            }
        }
        refused.map(|unproven| Err(unproven.advice("signed")))
    }

    /// What the etcd of other control planes that prove to be of the cluster of `ca` has for a node
    /// of this name.
    fn recorded(&self, name: &str, ca: &Certificate) -> Vec<Recorded> {
        let proven = self
            .context
            .peers
            .iter()
            .filter(|peer| peer.party.standing.is_control_plane_of(ca));
        proven
            .filter_map(|peer| peer.lent.as_ref()?.node(name))
            .collect()
    }

    /// What a worker's certificate takes, and how to bring it.
    pub(super) fn worker_advice(&self, state: Option<&AuthorityState>) -> String {
        let own = cluster_ca::cluster_authorities(self.context.guest, self.inventory);
        let own = cluster_ca::all_shown(&own);
        let worker = typed::guest(self.context.guest);
        let others: Vec<String> = cluster_ca::holders(Authority::Cluster, self.context.peers)
            .map(|found| {
                let ca = cluster_ca::shown(&found.signer.certificate);
                format!(
                    "{} ({}) holds the key of {ca}",
                    found.peer.name, found.peer.source
                )
            })
            .collect();
        if !others.is_empty() {
            return format!(
                "Refused: this node trusts {own}, but {}: that is another cluster, and what it \
                 signs would be rejected here.\n\
                 Next, with the disk of a control plane of its own cluster: rescue repair {worker} \
                 --ca CONTROL-PLANE",
                others.join(", ")
            );
        }
        let key = state.map_or_else(|| "ca.key".to_owned(), |state| state.key_path.to_string());
        format!(
            "Signing it takes the CA's key, and a worker has none ({key}): it is on the control \
             planes of its cluster, whose CA is {own}.\n\
             With the disk of one attached here too: rescue repair {worker} --ca CONTROL-PLANE    \
             (only reads that disk; without --ca both are repaired)\n\
             With the disks in two places: rescue certs request {worker} -o req.json    (no key \
             leaves this disk; it says what to type there)\n\
             For many workers at once: rescue certs bundle --ca CONTROL-PLANE --workers NAME,NAME \
             -o bundle.age    (one encrypted file with new keys), then rescue certs install \
             {worker} bundle.age"
        )
    }
}

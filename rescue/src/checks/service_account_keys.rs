//! service-account-keys: `sa.key`, with which every token of a pod is signed, and `sa.pub`, with
//! which the API server verifies them. The public key is worked out from the private one; a lost
//! private key comes from another control plane's disk or not at all: a new one would end every
//! token in the cluster.

use super::shared_keys::{Sibling, best_permitted, copy, siblings};
use crate::base::severity::Severity;
use crate::change::Content;
use crate::checks::shared_keys::copy::{DerivePublicKey, SharedFile};
use crate::finding::{Check, Context, Finding, Mode};
use crate::guest::GuestPath;
use crate::node::Role;
use crate::pki::peer::Peer;
use crate::pki::service_account::{KeyFile, ServiceAccounts, SigningKey, Trouble, VerifyingKeys};

const ID: &str = "service-account-keys";

const LOST: &str = "Every token of a pod was signed with it. With a new key none of them is \
    accepted any more: controllers, CNI, CoreDNS and every pod that talks to the API stay locked \
    out until their tokens are made anew. So it is never made anew here.";

const RESTORE: &str = "Bring it back from a backup of /etc/kubernetes/pki, or give the disk of \
    another control plane of this cluster in the same run: all of them hold the same one, and it \
    is copied from there.";

const LOST_KEY: Mode = Mode::stops_boot(
    "service-account-keys.lost",
    "sa.key or sa.pub is missing or cannot be read",
)
.why(
    "The API server verifies every pod's token with sa.pub, and kube-controller-manager \
    signs with sa.key. Both exit where the file cannot be read.",
)
.done(
    "Calculates a lost sa.pub from sa.key. Copies a lost sa.key from another control \
    plane's disk. A new sa.key is never made: it would end every token in the cluster.",
)
.source(
    "kube-apiserver's --service-account-key-file, kube-controller-manager's \
    --service-account-private-key-file",
);
const MISMATCH: Mode = Mode::will_break(
    "service-account-keys.mismatch",
    "sa.key and sa.pub do not belong together",
)
.why(
    "Tokens that are signed with sa.key cannot be verified with sa.pub: pods get \
    \"Unauthorized\".",
)
.done(
    "Calculates sa.pub from the key that the other control planes use, where their disks \
    are in the run. Else says which of the two is newer, and what to compare.",
)
.source("pkg/serviceaccount/jwt.go");

/// See the module.
pub const CHECK: Check = Check {
    id: ID,
    about: "lost, damaged or mismatched sa.key and sa.pub; writes sa.pub anew from sa.key, copies \
        sa.key from another control plane of the run, and never makes a new one",
    modes: &[LOST_KEY, MISMATCH],
    roles: &[Role::ControlPlane],
    after: &["shared-keys"],
    run,
};

fn run(context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
    if context.node.role.value != Some(Role::ControlPlane) {
        return Ok(Vec::new());
    }
    let own = Peer::read(context.guest, context.node, context.settings);
    let judge = Judge {
        siblings: siblings(&own, context.peers),
        keys: &own.service_accounts,
    };
    let mut findings: Vec<Finding> = judge
        .keys
        .signing
        .iter()
        .filter_map(|file| judge.signing(file))
        .collect();
    findings.extend(
        judge
            .keys
            .verifying
            .iter()
            .filter_map(|file| judge.verifying(file)),
    );
    findings.extend(judge.mismatch());
    Ok(findings)
}

struct Judge<'a> {
    siblings: Vec<Sibling>,
    keys: &'a ServiceAccounts,
}

/// A private key on another node's disk.
struct Found<'a> {
    sibling: &'a Sibling,
    public_key: &'a [u8],
    content: &'a Content,
}

impl Found<'_> {
    /// `finding` with this key as its remedy, where it may cross.
    fn mend(&self, finding: Finding, path: &GuestPath, proof: String) -> Finding {
        let file = SharedFile {
            path: path.clone(),
            content: self.content.clone(),
            is_secret: true,
        };
        copy(
            finding,
            &self.sibling.peer,
            vec![file],
            proof,
            &self.sibling.permit,
        )
    }
}

impl Judge<'_> {
    /// The private keys of the siblings: of those that one may best be copied from.
    fn found(&self) -> Vec<Found<'_>> {
        let holding = self
            .siblings
            .iter()
            .filter(|sibling| !Self::keys_of(&[sibling]).is_empty());
        Self::keys_of(&best_permitted(holding, |sibling| &sibling.permit))
    }

    fn keys_of<'s>(siblings: &[&'s Sibling]) -> Vec<Found<'s>> {
        let mut found = Vec::new();
        for &sibling in siblings {
            let keys = sibling
                .peer
                .service_accounts
                .signing
                .iter()
                .filter_map(|signing| signing.key.as_ref().ok());
            found.extend(keys.map(|(key, content)| Found {
                sibling,
                public_key: key.public_key(),
                content,
            }));
        }
        found
    }

    /// A sibling's key that is certainly the one lost here, and why.
    fn replacement(&self) -> Result<(Found<'_>, String), String> {
        let mut found = self.found();
        if found.is_empty() {
            return Err(RESTORE.to_owned());
        }
        if let Some(at) = found
            .iter()
            .position(|found| self.keys.accepts(found.public_key))
        {
            let found = found.swap_remove(at);
            return Ok((
                found,
                "the public key on this node is that key's".to_owned(),
            ));
        }
        let names = || {
            self.siblings
                .iter()
                .map(|sibling| sibling.peer.shown())
                .collect::<Vec<_>>()
                .join(", ")
        };
        if self.keys.verifying.iter().any(|file| file.keys.is_ok()) {
            return Err(format!(
                "The sa.key of {} does not belong to the public key on this node, so it is not \
                 copied: restore this node's own from a backup.",
                names()
            ));
        }
        let first = found.swap_remove(0);
        if found
            .iter()
            .any(|other| other.public_key != first.public_key)
        {
            return Err(format!(
                "{} hold different keys, so none is copied: find out which one the cluster uses.",
                names()
            ));
        }
        if !first.sibling.kinship.by_key {
            return Err(format!(
                "{} has one, but nothing on the two disks proves that they are of one cluster. If \
                 they are, copy it yourself.",
                names()
            ));
        }
        let proof = format!(
            "one cluster: {}; all its control planes share this key",
            first.sibling.kinship.words
        );
        Ok((first, proof))
    }

    fn signing(&self, file: &SigningKey) -> Option<Finding> {
        let trouble = file.key.as_ref().err()?;
        let finding = broken(&file.file, "the service accounts' private key", trouble);
        Some(match self.replacement() {
            Ok((found, proof)) => found.mend(finding, &file.file.path, proof),
            Err(why) => finding
                .with_advice(LOST)
                .with_advice(format!("Refused: {why}")),
        })
    }

    /// With what a public key can be made: the private key that is here, or that will be.
    fn private(&self) -> Option<(GuestPath, Vec<u8>)> {
        let here = self.keys.signing.iter().find_map(|file| {
            let (key, _) = file.key.as_ref().ok()?;
            Some((file.file.path.clone(), key.public_key().to_vec()))
        });
        here.or_else(|| {
            let path = self.keys.signing.first()?.file.path.clone();
            let (found, _) = self.replacement().ok()?;
            found
                .sibling
                .permit
                .is_ok()
                .then(|| (path, found.public_key.to_vec()))
        })
    }

    fn verifying(&self, file: &VerifyingKeys) -> Option<Finding> {
        let trouble = file.keys.as_ref().err()?;
        // One file for both is the private key's matter.
        if self
            .keys
            .signing
            .iter()
            .any(|signing| signing.file.path == file.file.path)
        {
            return None;
        }
        let finding = broken(&file.file, "the service accounts' public key", trouble);
        let Some((key, public)) = self.private() else {
            return Some(finding.with_advice(
                "It can be worked out from the private key alone, and that is lost too.",
            ));
        };
        let broken_files = self
            .keys
            .verifying
            .iter()
            .filter(|file| file.keys.is_err())
            .count();
        let stem = |path: &GuestPath| path.as_path().with_extension("");
        if !self.keys.accepts(&public) && (broken_files == 1 || stem(&key) == stem(&file.file.path))
        {
            let proof = match self.keys.verifying.len() {
                1 => "it is the only key that tokens are signed with".to_owned(),
                _ => "no other file of the API server holds its public half".to_owned(),
            };
            return Some(finding.with_remedy(DerivePublicKey {
                key,
                path: file.file.path.clone(),
                proof,
            }));
        }
        Some(match self.same_file_elsewhere(file) {
            Some((sibling, content)) => {
                let files = vec![SharedFile {
                    path: file.file.path.clone(),
                    content,
                    is_secret: true,
                }];
                let proof = format!(
                    "one cluster: {}; the API server there names the same file",
                    sibling.kinship.words
                );
                copy(finding, &sibling.peer, files, proof, &sibling.permit)
            }
            None => finding.with_advice(
                "Refused: it is not the public half of the key that signs now, but of an earlier \
                 one, which cannot be known from this disk. Restore the file, or take its \
                 --service-account-key-file out of the API server's manifest: tokens signed with \
                 the earlier key are then rejected.",
            ),
        })
    }

    fn same_file_elsewhere(&self, file: &VerifyingKeys) -> Option<(&Sibling, Content)> {
        self.siblings
            .iter()
            .filter(|sibling| sibling.kinship.by_key)
            .find_map(|sibling| {
                let there = sibling
                    .peer
                    .service_accounts
                    .verifying
                    .iter()
                    .find(|there| there.file.path == file.file.path)?;
                there
                    .keys
                    .as_ref()
                    .ok()
                    .map(|(_, content)| (sibling, content.clone()))
            })
    }

    /// All files are readable, and yet tokens signed here are not accepted here.
    fn mismatch(&self) -> Option<Finding> {
        let readable = self.keys.verifying.iter().all(|file| file.keys.is_ok())
            && !self.keys.verifying.is_empty();
        let (file, key) = self.keys.signing.iter().find_map(|file| {
            let (key, _) = file.key.as_ref().ok()?;
            (!self.keys.accepts(key.public_key())).then_some((&file.file, key))
        })?;
        if !readable {
            return None;
        }
        let public = &self.keys.verifying[0].file.path;
        let finding = Finding::new(
            MISMATCH,
            "the service accounts' keys do not belong together",
        )
        .with_evidence(&file.path, format!("its public half is not in {public}"));
        let found = self.found();
        if let Some(right) = found
            .iter()
            .find(|found| self.keys.accepts(found.public_key))
        {
            let proof = format!("{public} on this node is the other half of that key");
            return Some(right.mend(finding, &file.path, proof));
        }
        let confirmed = found.iter().find(|found| {
            let there = &found.sibling.peer.service_accounts;
            let is_proven = found.sibling.permit.is_ok();
            is_proven && found.public_key == key.public_key() && there.accepts(found.public_key)
        });
        if let (Some(confirmed), 1) = (confirmed, self.keys.verifying.len()) {
            return Some(finding.with_remedy(DerivePublicKey {
                key: file.path.clone(),
                path: public.clone(),
                proof: format!(
                    "{} has the same private key, with its own public half",
                    confirmed.sibling.peer.shown()
                ),
            }));
        }
        Some(
            finding
                .with_advice(
                    "Tokens that this control plane issues are rejected by its own API server: \
                     pods started from now on cannot talk to it.",
                )
                .with_advice(format!(
                    "Refused: which of the two is the cluster's cannot be seen here, and the wrong \
                     choice locks out every pod. {RESTORE} If {} is certainly the right one, \
                     delete {public}: it is then written anew from it.",
                    file.path
                )),
        )
    }
}

fn broken(file: &KeyFile, what: &str, trouble: &Trouble) -> Finding {
    let severity = if file.is_api_servers() {
        Severity::StopsBoot
    } else {
        Severity::WillBreak
    };
    let state = if trouble.missing {
        "missing"
    } else {
        "unreadable"
    };
    Finding::new(LOST_KEY, format!("{what} is {state}"))
        .with_severity(severity)
        .with_evidence(
            &file.path,
            format!("{}; named by {}", trouble.saw, file.named_by.join(", ")),
        )
}

//! The remedies for a CA that ends: a later certificate of the same authority in every place where
//! the old one stands.

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use std::cell::OnceCell;
use std::rc::Rc;
use time::OffsetDateTime;

use crate::base::units;
use crate::change::{Change, Prepared};
use crate::finding::{Context, Remedy};
use crate::guest::GuestPath;
use crate::pki::authority_copies::with_successor;
use crate::pki::inventory::Signer;
use crate::pki::profile::Authority;
use crate::pki::renew_ca::{keeps_serial, reissue};
use crate::pki::x509::certificate::Certificate;

/// Where the later certificate comes from.
#[derive(Debug)]
pub enum Origin {
    /// Signed here with the CA's own key, once for a whole plan.
    Made {
        /// The old certificate and its key.
        ca: Box<Signer>,
        /// The new end.
        not_after: OffsetDateTime,
        /// The new certificate, once it is made.
        made: Box<OnceCell<Certificate>>,
    },
    /// Found elsewhere: on another node of the run, or in another file of this disk.
    Found {
        /// It.
        certificate: Box<Certificate>,
        /// `node master2 (disk.img partition 1)`, `/etc/kubernetes/admin.conf`.
        at: String,
    },
}

/// A later certificate of an authority that is over or ends soon.
#[derive(Debug)]
pub struct Successor {
    /// Which authority.
    pub authority: Authority,
    /// The file that signs and is trusted first: pki/ca.crt.
    pub path: GuestPath,
    /// What it replaces.
    pub old: Certificate,
    /// Where the new one comes from.
    pub origin: Origin,
}

impl Successor {
    /// When it ends.
    pub fn not_after(&self) -> OffsetDateTime {
        match &self.origin {
            Origin::Made { not_after, .. } => *not_after,
            Origin::Found { certificate, .. } => certificate.not_after,
        }
    }

    /// The certificate itself; made at the first call.
    fn certificate(&self) -> Result<&Certificate> {
        match &self.origin {
            Origin::Found { certificate, .. } => Ok(certificate),
            Origin::Made {
                ca,
                not_after,
                made,
            } => {
                if made.get().is_none() {
                    let new = reissue(ca, *not_after)
                        .with_context(|| format!("renewing the CA {}", self.authority.name()))?;
                    return Ok(made.get_or_init(|| new));
                }
                made.get().context("a CA that was made and is gone")
            }
        }
    }

    fn fields(&self, path: &GuestPath) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("name".to_owned(), json!(self.authority.name()));
        fields.insert("path".to_owned(), json!(path.to_string()));
        fields.insert(
            "valid_to".to_owned(),
            json!(units::rfc3339(self.not_after())),
        );
        let origin = match &self.origin {
            Origin::Made { .. } => None,
            Origin::Found { at, .. } => Some(at),
        };
        fields.insert("taken_from".to_owned(), json!(origin));
        fields
    }

    /// `path` with the old certificate exchanged for the new one.
    fn exchange(&self, context: &Context<'_>, path: &GuestPath) -> Result<Prepared> {
        let bytes = context
            .guest
            .read(path)
            .with_context(|| format!("reading {path}"))?;
        let Some(new) = with_successor(&bytes, path, self.certificate()?)? else {
            return Ok(Prepared::default());
        };
        let change = Change::write(context.guest, path, new, 0o644)
            .with_context(|| format!("planning to write {path}"))?;
        Ok(Prepared {
            changes: vec![change],
            ..Prepared::default()
        })
    }
}

/// The CA's own file.
#[derive(Debug)]
pub struct RenewAuthority {
    /// Shared with the remedies of its copies.
    pub successor: Rc<Successor>,
    /// Now.
    pub now: OffsetDateTime,
}

impl Remedy for RenewAuthority {
    fn kind(&self) -> &'static str {
        "renew-authority"
    }

    fn summary(&self) -> String {
        let Successor {
            authority,
            path,
            old,
            origin,
            ..
        } = self.successor.as_ref();
        let verb = if old.not_after < self.now {
            "expired"
        } else {
            "expires"
        };
        let end = units::time(self.successor.not_after());
        let old = units::time(old.not_after);
        match origin {
            Origin::Made { .. } => {
                format!(
                    "renew the CA {} in {path} ({verb} {old}), valid to {end}",
                    authority.name()
                )
            }
            Origin::Found { at, .. } => {
                format!(
                    "take the renewed CA {} from {at} into {path} (the one there {verb} {old}), \
                     valid to {end}",
                    authority.name()
                )
            }
        }
    }

    fn details(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Origin::Made { ca, .. } = &self.successor.origin {
            lines.push(format!(
                "same key, subject {} and extensions: what it signed stays good",
                ca.certificate.subject
            ));
            if keeps_serial(&ca.certificate) {
                lines.push(
                    "the serial number stays too, because its certificates refer to it".to_owned(),
                );
            }
        }
        lines.extend(
            elsewhere(self.successor.authority)
                .iter()
                .map(|line| (*line).to_owned()),
        );
        lines
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = self.successor.fields(&self.successor.path);
        fields.insert(
            "elsewhere".to_owned(),
            json!(elsewhere(self.successor.authority)),
        );
        fields
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        self.successor.exchange(context, &self.successor.path)
    }
}

/// One more file that holds the CA.
#[derive(Debug)]
pub struct ReplaceAuthorityCopy {
    /// Shared with the CA's own remedy.
    pub successor: Rc<Successor>,
    /// The file.
    pub path: GuestPath,
}

impl Remedy for ReplaceAuthorityCopy {
    fn kind(&self) -> &'static str {
        "replace-authority-copy"
    }

    fn summary(&self) -> String {
        format!(
            "put the renewed CA {} into {}",
            self.successor.authority.name(),
            self.path
        )
    }

    fn fields(&self) -> Map<String, Value> {
        self.successor.fields(&self.path)
    }

    /// Only once the CA's own file has it: copies that are newer than what signs would help nobody.
    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let main = &self.successor.path;
        let new = self.successor.certificate()?;
        let own = Certificate::all_from_pem(&context.guest.read(main)?)
            .with_context(|| format!("reading {main}"))?;
        if !own.contains(new) {
            bail!("{main} does not hold the renewed CA");
        }
        self.successor.exchange(context, &self.path)
    }
}

/// Copies of the CA that are not on this disk, and what becomes of them.
pub fn elsewhere(authority: Authority) -> &'static [&'static str] {
    match authority {
        Authority::Cluster => &[
            "other nodes have their own copies: give all disks in one run; what is repaired later \
             takes the same certificate from here",
            "follow by themselves after boot: ConfigMaps kube-root-ca.crt and \
             extension-apiserver-authentication, ca.crt in the tokens of service accounts, and \
             pods' volumes made of them; pods that read the CA only when they start need a restart",
            "by hand after boot: ConfigMap cluster-info in kube-public (kubeadm join reads it), \
             caBundle of webhooks and of APIServices that name this CA, kubeconfigs kept on other \
             machines",
        ],
        Authority::FrontProxy => &[
            "other control planes have their own copies: give all disks in one run",
            "follows by itself after boot: ConfigMap extension-apiserver-authentication; \
             aggregated API servers reread it, old ones when they are restarted",
        ],
        Authority::Etcd => &[
            "other control planes and members of etcd have their own copies: give all disks in one \
             run",
            "by hand after boot: Secrets and hosts of other clients of etcd (calico with etcd, \
             monitoring, backups)",
        ],
    }
}

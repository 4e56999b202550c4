//! Laying down a kubelet's client certificate that was signed elsewhere. Nothing in what was
//! brought is believed: names, issuer, key and dates are checked against the node itself.

use anyhow::Result;
use serde_json::{Map, Value, json};
use std::fmt;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::kubelet_files::ClientFiles;
use crate::base::refusal::Refusal;
use crate::base::units;
use crate::change::Prepared;
use crate::finding::{Context, Mode, Remedy};
use crate::guest::GuestPath;
use crate::pki::client_key::{ClientKey, remove_pending};
use crate::pki::cluster_ca;
use crate::pki::csr::NODES;
use crate::pki::ferry::{CertificateFile, Entry};
use crate::pki::kubelet::{KubeletClient, NODE_PREFIX};
use crate::pki::profile::Usage;
use crate::pki::trust::names::node_signature;
use crate::pki::trust::{Party, Permit, Unproven};
use crate::pki::x509::certificate::{Certificate, SignatureCheck};

/// Not found by a check: what `rescue certs install` is for.
pub const BROUGHT: Mode = Mode::note("certificates.brought", "a certificate was brought")
    .why(
        "`rescue certs install` was given a certificate that was signed elsewhere for a key \
    on this disk.",
    )
    .done("Proves that it fits the key, and installs both.")
    .source("docs/certificates.md");

/// Two clocks may differ by a time zone.
const CLOCK_DIFFERENCE: Duration = Duration::DAY;

/// The node that a certificate is to be installed on.
#[derive(Debug, Clone, Copy)]
pub struct Recipient<'a> {
    /// Its kubelet.
    pub client: &'a KubeletClient,
    /// Its name.
    pub node: &'a str,
    /// The keys on its disk.
    pub keys: &'a [ClientKey],
    /// What it takes for its cluster's CA.
    pub own: &'a [Certificate],
    /// What its disk proves.
    pub party: &'a Party,
    /// The time that counts as now.
    pub now: OffsetDateTime,
    /// How its disks are named on a command line.
    pub typed: &'a str,
}

impl Recipient<'_> {
    /// The entry for this node: by name, and by a key that is here (or comes with it).
    pub fn entry<'e>(&self, file: &'e CertificateFile, from: &str) -> Result<&'e Entry, Refusal> {
        let mut named = file
            .certificates
            .iter()
            .filter(|entry| entry.node == self.node);
        match (named.next(), named.next()) {
            (Some(entry), None) => Ok(entry),
            (Some(_), Some(_)) => Err(Refusal::new(
                format!("{from} holds two certificates for {}", self.node),
                "which of them is meant cannot be guessed",
                "have it made again, with each node once",
            )),
            (None, _) => Err(Refusal::new(
                format!("{from} holds nothing for {}", self.node),
                format!("it is for: {}", file.names()),
                format!(
                    "install it on one of those, or have {} signed for too: {}",
                    self.node,
                    self.request()
                ),
            )),
        }
    }

    /// What to do with this certificate and, where it came along, its key.
    pub fn install(
        &self,
        certificate: &Certificate,
        key: Option<&Zeroizing<String>>,
        from: &str,
    ) -> Result<InstallKubeletClient, Refusal> {
        self.prove(certificate, from)?;
        let (key, pending, remark) = match key {
            Some(pem) => {
                let permit = self.may_have_key(certificate)?;
                let remark = format!("with the key that came with it; {}", permit.words());
                (self.brought(certificate, pem, from)?, false, remark)
            }
            None => {
                let key = self
                    .keys
                    .iter()
                    .find(|key| certificate.matches(&key.key))
                    .ok_or_else(|| self.no_key(from))?;
                (
                    key.pem.clone(),
                    key.pending,
                    format!("with the key in {}", key.path),
                )
            }
        };
        let Some(user) = self.client.user.clone() else {
            return Err(Refusal::new(
                format!("{} leads to no user", self.client.kubeconfig),
                "the kubelet would not find the certificate",
                format!("rescue repair {} first, then this again", self.typed),
            ));
        };
        Ok(InstallKubeletClient {
            node: self.node.to_owned(),
            certificate: certificate.clone(),
            key,
            pending,
            remark,
            cert_dir: self.client.cert_dir.clone(),
            kubeconfig: self.client.kubeconfig.clone(),
            user: (!self.client.points_to_current).then_some(user),
        })
    }

    fn request(&self) -> String {
        format!("rescue certs request {} -o {}.json", self.typed, self.node)
    }

    /// For this node, by this node's CA, for a client, now.
    fn prove(&self, certificate: &Certificate, from: &str) -> Result<(), Refusal> {
        let name = format!("{NODE_PREFIX}{}", self.node);
        let refuse = |saw: String, means: &str| {
            let next = format!("have this node signed for again: {}", self.request());
            Err(Refusal::new(
                format!("the certificate in {from} {saw}"),
                means,
                next,
            ))
        };
        if certificate.common_name.as_deref() != Some(name.as_str())
            || certificate.organizations != [NODES]
        {
            let saw = format!(
                "is for {}, not for O={NODES}, CN={name}",
                certificate.subject
            );
            return refuse(
                saw,
                "with it this node would speak in another's name, or in none that the API server \
                 knows",
            );
        }
        let signed = self
            .own
            .iter()
            .any(|ca| certificate.signed_by(ca) == SignatureCheck::Valid);
        if !signed {
            let saw = format!(
                "is signed by {}, not by what this node trusts, {}",
                certificate.issuer,
                cluster_ca::all_shown(self.own)
            );
            return refuse(
                saw,
                "it comes from another cluster (or was changed), and this one's API server would \
                 reject it",
            );
        }
        if certificate.not_after < self.now {
            return refuse(
                format!("expired {}", units::time(certificate.not_after)),
                "it is of no use any more",
            );
        }
        if certificate.not_before > self.now + CLOCK_DIFFERENCE {
            return refuse(
                format!("is valid only from {}", units::time(certificate.not_before)),
                "one of the clocks is wrong (--now says the right time)",
            );
        }
        let is_client = certificate
            .extended_key_usage
            .as_ref()
            .is_some_and(|usages| usages.iter().any(|usage| usage == Usage::Client.oid()));
        let may_sign = certificate.key_usage.is_none_or(|bits| bits & 1 != 0);
        if certificate.is_ca || !is_client || !may_sign {
            return refuse(
                "is no client certificate (extended key usage clientAuth)".to_owned(),
                "the API server would reject it",
            );
        }
        Ok(())
    }

    /// A key crosses to this disk, so the disk must prove to be the node that it is for: by a
    /// certificate of the same CA for that name, with its private key.
    fn may_have_key(&self, certificate: &Certificate) -> Result<Permit, Refusal> {
        let signers = self
            .own
            .iter()
            .filter(|ca| certificate.signed_by(ca) == SignatureCheck::Valid);
        let mut refused = None;
        for ca in signers {
            match node_signature(self.party, self.node, ca, &[], &[]) {
                Ok(permit) => return Ok(permit),
                Err(unproven) => refused = Some(unproven),
            }
        }
        let Unproven { saw, next } = refused.unwrap_or_else(|| Unproven {
            saw: format!(
                "{} does not prove to be node {}",
                self.party.shown(),
                self.node
            ),
            next: self.request(),
        });
        Err(Refusal::new(
            saw.trim_end_matches('.').to_owned(),
            "the bundle's key would make whoever holds this disk that node, so it is not put there",
            next,
        ))
    }

    fn brought(
        &self,
        certificate: &Certificate,
        pem: &Zeroizing<String>,
        from: &str,
    ) -> Result<Zeroizing<String>, Refusal> {
        let place = GuestPath::new("/");
        let key = ClientKey::from_pem(pem.as_bytes(), &place)
            .ok()
            .filter(|key| certificate.matches(&key.key));
        key.map(|key| key.pem).ok_or_else(|| {
            Refusal::new(
                format!(
                    "the key for {} in {from} does not belong to its certificate",
                    self.node
                ),
                "the bundle is damaged",
                "have it made again with rescue certs bundle",
            )
        })
    }

    fn no_key(&self, from: &str) -> Refusal {
        Refusal::new(
            format!(
                "the certificate for {} in {from} belongs to a key that is not on this disk",
                self.node
            ),
            "it was signed for an older request, or the node has got another key since",
            format!("have the key that is here signed: {}", self.request()),
        )
    }
}

/// A certificate signed elsewhere, put where the kubelet looks for it.
pub struct InstallKubeletClient {
    node: String,
    certificate: Certificate,
    key: Zeroizing<String>,
    pending: bool,
    remark: String,
    cert_dir: GuestPath,
    kubeconfig: GuestPath,
    user: Option<String>,
}

impl fmt::Debug for InstallKubeletClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstallKubeletClient({})", self.node)
    }
}

impl Remedy for InstallKubeletClient {
    fn kind(&self) -> &'static str {
        "install-kubelet-client"
    }

    fn summary(&self) -> String {
        format!(
            "install the kubelet client certificate for node {} that {} signed, valid to {}",
            self.node,
            self.certificate.issuer,
            units::time(self.certificate.not_after)
        )
    }

    fn details(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "new dated file in {}, kubelet-client-current.pem links to it; the old file stays",
                self.cert_dir
            ),
            self.remark.clone(),
        ];
        if self.user.is_some() {
            lines.push(format!(
                "{} is changed to lead to it; the rest of it stays byte for byte",
                self.kubeconfig
            ));
        }
        lines
    }

    fn fields(&self) -> Map<String, Value> {
        [
            ("name".to_owned(), json!("kubelet.conf")),
            ("path".to_owned(), json!(self.kubeconfig.to_string())),
            ("node_name".to_owned(), json!(self.node)),
            (
                "valid_to".to_owned(),
                json!(units::rfc3339(self.certificate.not_after)),
            ),
        ]
        .into_iter()
        .collect()
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        let pem = self.certificate.to_pem() + &self.key;
        let files = ClientFiles {
            cert_dir: &self.cert_dir,
            kubeconfig: &self.kubeconfig,
            user: self.user.as_deref(),
        };
        files.lay_down(&mut draft, pem, context.settings.now)?;
        if self.pending {
            let change = remove_pending(&draft.guest, &self.cert_dir)?;
            draft.push(change)?;
        }
        Ok(draft.done())
    }
}

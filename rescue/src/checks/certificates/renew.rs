//! The remedies: new leaves in place of old ones, always together with their keys.

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use std::rc::Rc;
use time::OffsetDateTime;

use super::kubelet_files::ClientFiles;
use crate::base::units;
use crate::change::Draft;
use crate::change::Prepared;
use crate::finding::{Context, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::edit::{NewMaterial, replace_credentials};
use crate::kubeconfig::{Kubeconfig, Material};
use crate::pki::inventory::{Leaf, Place, Signer, Verdict};
use crate::pki::kubelet::KubeletClient;
use crate::pki::profile::Usage;
use crate::pki::rebuild::Blueprint;
use crate::pki::x509::certificate::{AlternativeNames, Certificate, SignatureCheck};
use crate::pki::x509::issue::{Issuer, Request, Validity, issue, subject};
use crate::pki::x509::key::{Algorithm, PrivateKey};
use crate::pki::x509::key_pool::{KeyPool, Order};
use crate::pki::x509::names::{self, NameSource, in_order};
use crate::settings::Settings;

/// A new certificate and key for one leaf of the control plane, in files or inline in a kubeconfig.
#[derive(Debug)]
pub struct RenewCertificate {
    name: &'static str,
    also: Vec<&'static str>,
    place: Place,
    old: Option<Certificate>,
    blueprint: Option<Blueprint>,
    chain: Vec<Certificate>,
    subject_raw: Vec<u8>,
    names: Option<AlternativeNames>,
    added: Vec<NameSource>,
    usages: &'static [Usage],
    signer: Signer,
    remarks: Vec<String>,
    validity: Validity,
    now: OffsetDateTime,
    algorithm: Algorithm,
    key: KeyPlan,
    keys: Rc<KeyPool>,
}

/// Where the key of the new certificate is from.
#[derive(Debug)]
enum KeyPlan {
    /// The old one stays, byte for byte.
    Keep {
        /// Why.
        why: String,
    },
    /// A new one.
    New {
        /// In the pool.
        order: Order,
        /// Why, where the old one was to stay.
        why: Option<&'static str>,
    },
}

impl RenewCertificate {
    /// For `leaf`, which must have a place; a lost one needs a blueprint. `None` where its names
    /// cannot be known. `remarks`: further lines for the plan.
    pub fn new(
        leaf: &Leaf,
        signer: &Signer,
        keys: &Rc<KeyPool>,
        settings: &Settings,
        blueprint: Option<Blueprint>,
        remarks: Vec<String>,
    ) -> Option<Self> {
        let now = settings.now;
        // With another disk's key nothing is signed again that this CA has not signed before: a
        // crafted subject may hold anything.
        let is_lent = !remarks.is_empty();
        let is_signed =
            |old: &Certificate| old.signed_by(&signer.certificate) == SignatureCheck::Valid;
        if is_lent && leaf.certificate.as_ref().is_some_and(|old| !is_signed(old)) {
            return None;
        }
        let (subject_raw, algorithm, added) = match (&leaf.certificate, &blueprint) {
            (Some(old), _) => {
                let missing = leaf.needed.missing(old);
                let added = if missing.is_empty() {
                    Vec::new()
                } else {
                    new_names(old, &leaf.needed.all())
                };
                (
                    old.subject_raw.clone(),
                    old.algorithm.unwrap_or(Algorithm::Rsa(2048)),
                    added,
                )
            }
            (None, Some(blueprint)) => (
                blueprint.subject_raw.clone(),
                blueprint.algorithm,
                blueprint.names.clone(),
            ),
            (None, None) => return None,
        };
        let old_names = leaf
            .certificate
            .as_ref()
            .and_then(|old| old.alternative_names.as_ref());
        let algorithm = algorithm.renewed();
        Some(Self {
            name: leaf.name,
            also: leaf.also.clone(),
            place: leaf.place.clone()?,
            old: leaf.certificate.clone(),
            names: names::union(old_names, &added).ok()?,
            added,
            blueprint,
            chain: leaf
                .chain
                .iter()
                .filter(|other| other.not_after > now)
                .cloned()
                .collect(),
            subject_raw,
            usages: leaf.usages,
            signer: signer.clone(),
            remarks,
            validity: Validity::control_plane(&signer.certificate, now, settings.days),
            now,
            algorithm,
            key: KeyPlan::new(leaf, settings.reuse_keys, || keys.order(algorithm)),
            keys: Rc::clone(keys),
        })
    }

    fn issue(&self, key: &PrivateKey) -> Result<Certificate> {
        let request = Request {
            subject_raw: &self.subject_raw,
            alternative_names: self.names.as_ref(),
            public_key_info: &key.public_key_info(),
            key_encipherment: true,
            usages: self.usages,
            validity: self.validity,
        };
        let issuer = Issuer {
            certificate: &self.signer.certificate,
            key: &self.signer.key,
        };
        issue(issuer, request).with_context(|| format!("issuing {}", self.name))
    }

    fn write_files(
        &self,
        draft: &mut Draft,
        context: &Context<'_>,
        paths: &Files<'_>,
    ) -> Result<()> {
        let (key, kept) = match self.key {
            KeyPlan::Keep { .. } => {
                let (key, bytes) = kept_key(&draft.guest, paths.key)?;
                (key, Some(bytes))
            }
            KeyPlan::New { order, .. } => (self.keys.key(order, context.ui)?, None),
        };
        let mut text = self.issue(&key)?.to_pem();
        for other in &self.chain {
            text.push_str(&other.to_pem());
        }
        if is_one_file(&draft.guest, paths.certificate, paths.key) {
            text.push_str(&match kept {
                Some(bytes) => String::from_utf8_lossy(&key_block(&bytes)).into_owned(),
                None => key.to_pem()?,
            });
            return draft.write_like(paths.certificate, text, 0o600, paths.certificate);
        }
        // Key first, as kubeadm writes them; the journal makes the two one step.
        if kept.is_none() {
            draft.write_like(paths.key, key.to_pem()?, 0o600, paths.certificate)?;
        }
        draft.write_like(paths.certificate, text, 0o644, paths.key)
    }

    fn write_config(
        &self,
        draft: &mut Draft,
        context: &Context<'_>,
        path: &GuestPath,
        user: &str,
    ) -> Result<()> {
        let old = draft.guest.read(path)?;
        let (key, private) = match self.key {
            KeyPlan::Keep { .. } => {
                let bytes = inline_key(&old, path, user)?;
                (
                    PrivateKey::from_pem(&bytes)
                        .map(Rc::new)
                        .with_context(|| format!("reading {path}"))?,
                    bytes,
                )
            }
            KeyPlan::New { order, .. } => {
                let key = self.keys.key(order, context.ui)?;
                let text = key.to_pem()?.into_bytes();
                (key, text)
            }
        };
        let mut certificate = self.issue(&key)?.to_pem();
        for other in &self.chain {
            certificate.push_str(&other.to_pem());
        }
        let new = replace_credentials(
            &old,
            user,
            NewMaterial::Inline(certificate.as_bytes()),
            NewMaterial::Inline(&private),
        )
        .with_context(|| format!("editing {path}"))?;
        draft.write(path, new, 0o600)
    }

    /// Says so where the new key is not of the old one's kind.
    fn another_kind(&self) -> String {
        match self.old.as_ref().map(|old| old.algorithm) {
            Some(Some(old)) if old != self.algorithm => {
                format!(" (the old one was {old}, which nobody makes any more)")
            }
            Some(None) => {
                " (the old one was of a kind that Kubernetes' certificates are not made with here; \
                 this is kubeadm's default)"
                    .to_owned()
            }
            _ => String::new(),
        }
    }

    /// Names as before, or each with its source where they are put together.
    fn names_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(old) = self
            .old
            .as_ref()
            .and_then(|old| old.alternative_names.as_ref())
        {
            lines.push(format!("names {}, as before", old.names.join(", ")));
        }
        let verb = if self.old.is_some() { "adds" } else { "name" };
        lines.extend(self.added.iter().map(|name| format!("{verb} {name}")));
        lines
    }
}

impl KeyPlan {
    fn new(leaf: &Leaf, reuse: bool, order: impl FnOnce() -> Order) -> Self {
        if let Some(Place::Files {
            keep_key: Some(why),
            ..
        }) = &leaf.place
        {
            return Self::Keep { why: why.clone() };
        }
        let unusable = leaf
            .problems
            .iter()
            .any(|problem| problem.verdict == Verdict::KeyUnusable);
        match (reuse, unusable) {
            (true, false) => Self::Keep {
                why: "asked for with --reuse-keys".to_owned(),
            },
            (true, true) => Self::New {
                order: order(),
                why: Some("the old one cannot be used again"),
            },
            (false, _) => Self::New {
                order: order(),
                why: None,
            },
        }
    }
}

/// Those of `wanted` that an old certificate does not have.
fn new_names(old: &Certificate, wanted: &[NameSource]) -> Vec<NameSource> {
    let have = old.alternative_names.as_ref();
    in_order(wanted)
        .into_iter()
        .filter(|wanted| have.is_none_or(|have| !wanted.name.is_in(have)))
        .collect()
}

/// The key in a user's entry of a kubeconfig.
fn inline_key(kubeconfig: &[u8], path: &GuestPath, user: &str) -> Result<Vec<u8>> {
    let config = Kubeconfig::parse(kubeconfig, path)?;
    match config
        .users
        .into_iter()
        .find(|entry| entry.name == user)
        .map(|entry| entry.key)
    {
        Some(Material::Inline(bytes)) => Ok(bytes),
        _ => bail!("user {user} of {path} has no key of its own"),
    }
}

struct Files<'a> {
    certificate: &'a GuestPath,
    key: &'a GuestPath,
}

impl Remedy for RenewCertificate {
    fn kind(&self) -> &'static str {
        match self.place {
            Place::Files { .. } if self.blueprint.is_some() => "recreate-certificate",
            Place::Files { .. } => "renew-certificate",
            Place::Config { .. } => "renew-kubeconfig-certificate",
        }
    }

    fn summary(&self) -> String {
        let what = match &self.place {
            Place::Files { certificate, .. } => certificate.to_string(),
            Place::Config { path, .. } => format!("the certificate in {path}"),
        };
        let verb = if self.blueprint.is_some() {
            "recreate"
        } else {
            "renew"
        };
        format!(
            "{verb} {what}{}, valid to {}",
            ended(self.old.as_ref(), self.now),
            units::time(self.validity.not_after)
        )
    }

    fn must_be_read(&self) -> bool {
        self.blueprint.is_some() || !self.added.is_empty()
    }

    fn details(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(old) = &self.old {
            let subject = if old.subject.is_empty() {
                "(empty)"
            } else {
                &old.subject
            };
            lines.push(format!("subject {subject}, as before"));
        }
        if let Some(blueprint) = &self.blueprint {
            lines.push(format!("subject {}", blueprint.subject));
        }
        lines.extend(self.names_lines());
        if !self.also.is_empty() {
            lines.push(format!(
                "one file for {} and {}",
                self.name,
                self.also.join(" and ")
            ));
        }
        match &self.key {
            KeyPlan::Keep { why } => lines.push(format!("the key stays: {why}")),
            KeyPlan::New { why: Some(why), .. } => {
                lines.push(format!("new {} key: {why}", self.algorithm))
            }
            KeyPlan::New { .. } if self.blueprint.is_none() => {
                lines.push(format!("new {} key{}", self.algorithm, self.another_kind()))
            }
            KeyPlan::New { .. } => {}
        }
        lines.extend(
            self.blueprint
                .iter()
                .flat_map(|blueprint| blueprint.remarks.iter().cloned()),
        );
        lines.extend(self.remarks.iter().cloned());
        lines.extend(
            self.old
                .as_ref()
                .and_then(|old| differences(old, self.usages)),
        );
        if self.validity.not_after == self.signer.certificate.not_after {
            lines.push(format!(
                "ends with its CA ({})",
                self.signer.certificate.subject
            ));
        }
        lines
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = fields(self.name, self.place.path(), self.validity);
        let added =
            |name: &NameSource| json!({"name": name.name.to_string(), "source": name.source});
        let all = self
            .names
            .as_ref()
            .map(|names| names.names.clone())
            .unwrap_or_default();
        fields.insert("names".to_owned(), json!(all));
        fields.insert(
            "names_added".to_owned(),
            self.added.iter().map(added).collect(),
        );
        fields.insert(
            "key_stays".to_owned(),
            json!(matches!(self.key, KeyPlan::Keep { .. })),
        );
        fields
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        match &self.place {
            Place::Files {
                certificate, key, ..
            } => {
                self.write_files(&mut draft, context, &Files { certificate, key })?;
            }
            Place::Config { path, user } => self.write_config(&mut draft, context, path, user)?,
        }
        Ok(draft.done())
    }
}

fn ended(old: Option<&Certificate>, now: OffsetDateTime) -> String {
    let verb = |end: OffsetDateTime| if end < now { "expired" } else { "expires" };
    old.map_or_else(String::new, |old| {
        format!(" ({} {})", verb(old.not_after), units::time(old.not_after))
    })
}

fn fields(name: &str, path: &GuestPath, validity: Validity) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("name".to_owned(), json!(name));
    fields.insert("path".to_owned(), json!(path.to_string()));
    let format = time::format_description::well_known::Rfc3339;
    fields.insert(
        "valid_to".to_owned(),
        json!(validity.not_after.format(&format).unwrap_or_default()),
    );
    fields
}

/// A shared key, with the bytes of its file.
fn kept_key(guest: &Guest, path: &GuestPath) -> Result<(Rc<PrivateKey>, Vec<u8>)> {
    let bytes = guest.read(path)?;
    let key = PrivateKey::from_pem(&bytes).with_context(|| format!("reading {path}"))?;
    Ok((Rc::new(key), bytes))
}

/// The key block of a file that also holds certificates, in its own encoding.
fn key_block(bytes: &[u8]) -> Vec<u8> {
    crate::pki::x509::pem::blocks(bytes)
        .into_iter()
        .filter(|block| block.label != "CERTIFICATE")
        .map(|block| crate::pki::x509::pem::encode(&block.label, &block.der))
        .collect::<String>()
        .into_bytes()
}

fn is_one_file(guest: &Guest, one: &GuestPath, other: &GuestPath) -> bool {
    one == other
        || matches!(
            (guest.resolve(one), guest.resolve(other)),
            (Ok(one), Ok(other)) if one == other
        )
}

/// What the old certificate was allowed to do, where that is not what its users need.
fn differences(old: &Certificate, usages: &[Usage]) -> Option<String> {
    // digitalSignature and keyEncipherment.
    const LEAF_KEY_USAGE: u16 = 0b101;
    let wanted: Vec<&str> = usages.iter().map(|usage| usage.oid()).collect();
    let had = old.extended_key_usage.clone().unwrap_or_default();
    let names = |oids: &[String]| {
        oids.iter()
            .map(|oid| Usage::name_of(oid))
            .collect::<Vec<_>>()
            .join(", ")
    };
    if had != wanted {
        let had = if had.is_empty() {
            "none".to_owned()
        } else {
            names(&had)
        };
        let wanted: Vec<String> = wanted.iter().map(|oid| (*oid).to_owned()).collect();
        return Some(format!(
            "extended key usage becomes {} (was {had})",
            names(&wanted)
        ));
    }
    (old.key_usage != Some(LEAF_KEY_USAGE)).then(|| {
        "key usage becomes digitalSignature, keyEncipherment (the old one differed)".to_owned()
    })
}

/// A new client certificate for the kubelet: a dated file, the link to it, and a kubeconfig that
/// leads there.
#[derive(Debug)]
pub struct RenewKubeletClient {
    node_name: String,
    cert_dir: GuestPath,
    kubeconfig: GuestPath,
    user: String,
    edit_kubeconfig: bool,
    old: Option<Certificate>,
    remarks: Vec<String>,
    key_encipherment: bool,
    signer: Signer,
    validity: Validity,
    now: OffsetDateTime,
    order: Order,
    keys: Rc<KeyPool>,
}

impl RenewKubeletClient {
    /// `None` where the node's name or the kubeconfig's user is not known. `key_encipherment`:
    /// kubelets before 1.27 ask for it.
    pub fn new(
        client: &KubeletClient,
        signer: &Signer,
        keys: &Rc<KeyPool>,
        settings: &Settings,
        key_encipherment: bool,
    ) -> Option<Self> {
        Some(Self {
            node_name: client.node_name.clone().ok()?,
            cert_dir: client.cert_dir.clone(),
            kubeconfig: client.kubeconfig.clone(),
            user: client.user.clone()?,
            edit_kubeconfig: !client.points_to_current,
            old: client.certificate.clone(),
            remarks: client.remarks.clone(),
            key_encipherment,
            signer: signer.clone(),
            validity: Validity::kubelet(&signer.certificate, settings.now, settings.days),
            now: settings.now,
            // The kubelet itself makes P-256 keys at every rotation, whatever the first one was.
            order: keys.order(Algorithm::P256),
            keys: Rc::clone(keys),
        })
    }

    /// The old subject as it stands where the same CA signed it for a kubelet, else the one that
    /// the signer of the API server would issue. Nothing else is taken over: a crafted subject may
    /// hold names that others read out of it and we do not.
    fn subject(&self) -> Result<Vec<u8>> {
        let name = format!("system:node:{}", self.node_name);
        let is_kubelets = |old: &&Certificate| {
            old.common_name.as_deref() == Some(&name)
                && old.organizations == ["system:nodes"]
                && old.signed_by(&self.signer.certificate) == SignatureCheck::Valid
        };
        match self.old.as_ref().filter(is_kubelets) {
            Some(old) => Ok(old.subject_raw.clone()),
            None => subject(&["system:nodes"], &name),
        }
    }
}

impl Remedy for RenewKubeletClient {
    fn kind(&self) -> &'static str {
        "renew-kubelet-client"
    }

    fn summary(&self) -> String {
        format!(
            "issue a new kubelet client certificate for node {}{}, valid to {}",
            self.node_name,
            ended(self.old.as_ref(), self.now),
            units::time(self.validity.not_after)
        )
    }

    fn details(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "new dated file in {}, kubelet-client-current.pem links to it; the old file stays",
                self.cert_dir
            ),
            "new ECDSA-P256 key, as the kubelet makes them".to_owned(),
        ];
        if self.edit_kubeconfig {
            lines.push(format!(
                "{} is changed to lead to it; the rest of it stays byte for byte",
                self.kubeconfig
            ));
        }
        lines.extend(self.remarks.iter().cloned());
        lines
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = fields("kubelet.conf", &self.kubeconfig, self.validity);
        fields.insert("node_name".to_owned(), json!(self.node_name));
        fields
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        let key = self.keys.key(self.order, context.ui)?;
        let request = Request {
            subject_raw: &self.subject()?,
            alternative_names: None,
            public_key_info: &key.public_key_info(),
            key_encipherment: self.key_encipherment,
            usages: crate::pki::profile::CLIENT,
            validity: self.validity,
        };
        let issuer = Issuer {
            certificate: &self.signer.certificate,
            key: &self.signer.key,
        };
        let certificate =
            issue(issuer, request).context("issuing the kubelet's client certificate")?;
        let pem = certificate.to_pem() + &key.to_pem()?;
        let user = self.edit_kubeconfig.then_some(self.user.as_str());
        let files = ClientFiles {
            cert_dir: &self.cert_dir,
            kubeconfig: &self.kubeconfig,
            user,
        };
        files.lay_down(&mut draft, pem, context.settings.now)?;
        Ok(draft.done())
    }
}

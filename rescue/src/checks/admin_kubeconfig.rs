//! admin-kubeconfig: the copies of admin.conf that people use as ~/.kube/config. They expire with it and nothing renews them.
//! Only the entries of this cluster's own administrator are refreshed; everything else in the files stays.

use anyhow::{Context as _, bail};
use std::collections::BTreeSet;
use time::OffsetDateTime;

use super::{Check, Context, Finding, Remedy, Severity};
use crate::guest::{Guest, GuestPath, RealPath};
use crate::kubeconfig::edit::{NewMaterial, replace_credentials};
use crate::kubeconfig::homes::homes;
use crate::kubeconfig::{Kubeconfig, Material, User};
use crate::node::Role;
use crate::pki::certificate::{Certificate, SignatureCheck, printable};
use crate::pki::inventory::{AuthorityState, Inventory, Verdict, dates};
use crate::pki::key::PrivateKey;
use crate::pki::profile::Authority;
use crate::repair::{Change, Prepared};
use crate::units;

const ID: &str = "admin-kubeconfig";

/// kubeadm's own administrators, whose copies are looked for.
const SOURCES: [&str; 2] = ["/etc/kubernetes/admin.conf", "/etc/kubernetes/super-admin.conf"];

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct AdminKubeconfig;

impl Check for AdminKubeconfig {
    fn id(&self) -> &'static str {
        ID
    }

    fn about(&self) -> &'static str {
        "expired copies of admin.conf in /root/.kube/config and people's homes; refreshes the administrator's entry and nothing else"
    }

    fn run(&self, context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
        if let Some(Role::OtherDistribution | Role::NotKubernetes) = context.node.role.value {
            return Ok(Vec::new());
        }
        let guest = context.guest;
        let now = context.settings.now;
        let inventory = Inventory::read(guest, context.node, now);
        let Some(authority) = inventory.authorities.get(&Authority::Cluster) else { return Ok(Vec::new()) };
        let admins: Vec<Admin> = SOURCES.iter().filter_map(|path| Admin::read(guest, &GuestPath::new(path))).collect();
        let mut seen: BTreeSet<RealPath> = admins.iter().filter_map(|admin| guest.resolve(&admin.path).ok()).collect();
        let mut findings = Vec::new();
        for path in candidates(guest) {
            // A link to admin.conf, or to a copy that was looked at already, is the same file.
            let new = guest.resolve(&path).is_ok_and(|real| seen.insert(real));
            if new {
                findings.extend(look(guest, &path, &admins, authority, now));
            }
        }
        Ok(findings)
    }
}

/// One of kubeadm's administrators as its kubeconfig has it now.
struct Admin {
    path: GuestPath,
    certificate: Certificate,
}

impl Admin {
    fn read(guest: &Guest, path: &GuestPath) -> Option<Self> {
        let (certificate, _) = current_pair(guest, path).ok()?;
        let certificate = Certificate::all_from_pem(&certificate).ok()?.into_iter().next()?;
        Some(Self { path: path.clone(), certificate })
    }

    /// Same name, same groups.
    fn is(&self, certificate: &Certificate) -> bool {
        let groups = |certificate: &Certificate| certificate.organizations.iter().cloned().collect::<BTreeSet<_>>();
        self.certificate.common_name == certificate.common_name && groups(&self.certificate) == groups(certificate)
    }
}

/// Certificate and key of the current user, PEM.
fn current_pair(guest: &Guest, path: &GuestPath) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let config = Kubeconfig::parse(&guest.read(path)?, path).with_context(|| format!("reading {path}"))?;
    let user = config.current_user().with_context(|| format!("{path}: current-context leads to no user"))?;
    Ok((bytes(guest, &user.certificate)?, bytes(guest, &user.key)?))
}

fn bytes(guest: &Guest, material: &Material) -> anyhow::Result<Vec<u8>> {
    match material {
        Material::Inline(bytes) => Ok(bytes.clone()),
        Material::File(path) => Ok(guest.read(path)?),
        Material::None => bail!("no client certificate"),
    }
}

/// `.kube/config` of everybody who has one.
fn candidates(guest: &Guest) -> BTreeSet<GuestPath> {
    homes(guest).into_iter().map(|home| home.join(".kube/config")).filter(|path| guest.exists(path)).collect()
}

fn look(
    guest: &Guest,
    path: &GuestPath,
    admins: &[Admin],
    authority: &AuthorityState,
    now: OffsetDateTime,
) -> Option<Finding> {
    let config = match guest.read(path).map_err(anyhow::Error::from).and_then(|bytes| Kubeconfig::parse(&bytes, path)) {
        Ok(config) => config,
        Err(error) => {
            return Some(
                Finding::new(ID, Severity::WillBreak, format!("{path} is not a kubeconfig"))
                    .with_evidence(path, printable(&format!("{error:#}")))
                    .with_advice(
                        "kubectl refuses it. Left as it is: mend it by hand, or delete it if nobody needs it.",
                    ),
            );
        }
    };
    let users: Vec<(&User, Standing)> =
        config.users.iter().map(|user| (user, standing(path, user, admins, authority, now))).collect();
    let mut finding: Option<Finding> = None;
    for (user, standing) in &users {
        let Standing::Stale { source, certificate, saw, mendable } = standing else { continue };
        let remedy = RefreshKubeconfig {
            path: path.clone(),
            user: user.name.clone(),
            source: source.clone(),
            not_after: certificate.not_after,
        };
        let title = format!("{path}: the administrator's certificate {saw}");
        let found = finding.take().unwrap_or_else(|| Finding::new(ID, Severity::WillBreak, title));
        let found = found.with_evidence(path, format!("user {}: {} {saw}", printable(&user.name), certificate.subject));
        finding = Some(if *mendable {
            found.with_remedy(remedy)
        } else {
            found.with_advice(format!("Not mended: {source} is no better, and it cannot be renewed on this node."))
        });
    }
    let others: Vec<String> = users.iter().filter_map(|(user, standing)| standing.left_alone(user)).collect();
    match finding {
        Some(found) if others.is_empty() => Some(found),
        Some(found) => Some(found.with_advice(format!("Left alone in it: {}.", others.join(", ")))),
        None => note(path, &users, &others),
    }
}

/// A file with nobody of ours in it is named only when something in it is over.
fn note(path: &GuestPath, users: &[(&User, Standing)], others: &[String]) -> Option<Finding> {
    let expired: Vec<String> = users
        .iter()
        .filter_map(|(user, standing)| match standing {
            Standing::Other { saw: Some(saw), .. } => Some(format!("user {} {saw}", printable(&user.name))),
            _ => None,
        })
        .collect();
    (!expired.is_empty()).then(|| {
        Finding::new(ID, Severity::Note, format!("{path} has an expired user that is not this cluster's administrator"))
            .with_evidence(path, expired.join(", "))
            .with_advice(format!("Left alone: {}.", others.join(", ")))
    })
}

/// What one user entry is to us.
enum Standing {
    /// This cluster's administrator, still good.
    Fresh,
    /// This cluster's administrator, over or nearly.
    Stale {
        source: GuestPath,
        certificate: Box<Certificate>,
        saw: String,
        /// Whether the source is better already or can be renewed.
        mendable: bool,
    },
    /// Somebody else.
    Other { why: String, saw: Option<String> },
}

impl Standing {
    fn left_alone(&self, user: &User) -> Option<String> {
        match self {
            Self::Other { why, saw: Some(saw) } => Some(format!("user {} ({why}; {saw})", printable(&user.name))),
            Self::Other { why, saw: None } => Some(format!("user {} ({why})", printable(&user.name))),
            _ => None,
        }
    }
}

fn standing(
    path: &GuestPath,
    user: &User,
    admins: &[Admin],
    authority: &AuthorityState,
    now: OffsetDateTime,
) -> Standing {
    let other = |why: &str, saw| Standing::Other { why: why.to_owned(), saw };
    let data = match &user.certificate {
        Material::Inline(data) => data,
        Material::File(_) => return other("its certificate is in a file of its own", None),
        Material::None => return other("no client certificate", None),
    };
    let Some(certificate) = Certificate::all_from_pem(data).ok().and_then(|all| all.into_iter().next()) else {
        return other("its certificate is unreadable", None);
    };
    let saw = dates(&certificate, path, now).and_then(|problem| match problem.verdict {
        Verdict::Expired => Some(format!("expired {}", units::time(certificate.not_after))),
        Verdict::Expiring => Some(format!("expires {}", units::time(certificate.not_after))),
        _ => None,
    });
    if authority.issued(&certificate, &[]) != SignatureCheck::Valid {
        return other("another cluster's", saw);
    }
    let Some(admin) = admins.iter().find(|admin| admin.is(&certificate)) else {
        return other("not the administrator", saw);
    };
    match saw {
        Some(saw) => {
            let mendable = authority.signer.is_ok() || admin.certificate.not_after > certificate.not_after.max(now);
            Standing::Stale { source: admin.path.clone(), certificate: Box::new(certificate), saw, mendable }
        }
        None => Standing::Fresh,
    }
}

/// Puts the administrator's present certificate and key into a copy.
#[derive(Debug)]
struct RefreshKubeconfig {
    path: GuestPath,
    user: String,
    source: GuestPath,
    not_after: OffsetDateTime,
}

impl Remedy for RefreshKubeconfig {
    fn kind(&self) -> &'static str {
        "refresh-kubeconfig"
    }

    fn summary(&self) -> String {
        format!("refresh user {} in {} from {}", printable(&self.user), self.path, self.source)
    }

    fn details(&self) -> Vec<String> {
        vec!["owner and mode stay, and so do all other users, clusters and contexts in it".to_owned()]
    }

    fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut fields = serde_json::Map::new();
        for (key, value) in
            [("path", self.path.to_string()), ("user", self.user.clone()), ("source", self.source.to_string())]
        {
            fields.insert(key.to_owned(), value.into());
        }
        fields
    }

    /// Reads the source as it will be by then. Copying one that was not renewed would mend nothing.
    fn prepare(&self, context: &Context<'_>) -> anyhow::Result<Prepared> {
        let guest = context.guest;
        let (certificate, key) =
            current_pair(guest, &self.source).with_context(|| format!("reading {}", self.source))?;
        let leaf = Certificate::all_from_pem(&certificate)?.into_iter().next().context("no certificate")?;
        if leaf.not_after <= self.not_after || leaf.not_after < context.settings.now {
            // Certificates skipped, or not mendable here: the finding stays, the rest of the plan does not suffer.
            context.ui.note(&format!("{} is not renewed, so {} stays as it is", self.source, self.path));
            return Ok(Prepared::default());
        }
        if !leaf.matches(&PrivateKey::from_pem(&key)?) {
            bail!("{}: its certificate does not match its key", self.source);
        }
        let old = guest.read(&self.path)?;
        let new = replace_credentials(&old, &self.user, NewMaterial::Inline(&certificate), NewMaterial::Inline(&key))
            .with_context(|| format!("editing {}", self.path))?;
        let change =
            Change::write(guest, &self.path, new, 0o600).with_context(|| format!("planning to write {}", self.path))?;
        Ok(Prepared { changes: vec![change], ..Prepared::default() })
    }
}

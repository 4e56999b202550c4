//! admin-kubeconfig: the copies of admin.conf that people use as ~/.kube/config. They expire with
//! it and nothing renews them. Only the entries of this cluster's own administrator are refreshed;
//! everything else in the files stays.
//!
//! Anybody on the node can write a ~/.kube/config with the administrator's certificate in it: a
//! certificate is public. Only who has the private key that fits it is an administrator already, so
//! only such an entry gets the new key; and only in a file that is that person's own, which
//! afterwards only its owner can read.

use anyhow::{Context as _, bail};
use std::collections::BTreeSet;
use time::OffsetDateTime;

use crate::base::units;
use crate::change::{Attributes, Change, Content, Expect, Prepared};
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath, READ_LIMIT, RealPath};
use crate::kubeconfig::edit::{NewMaterial, replace_credentials};
use crate::kubeconfig::homes::{PersonalConfig, personal_configs};
use crate::kubeconfig::{Kubeconfig, Material, User};
use crate::node::Role;
use crate::pki::inventory::{AuthorityState, Verdict, dates};
use crate::pki::profile::Authority;
use crate::pki::x509::certificate::{Certificate, SignatureCheck, printable};
use crate::pki::x509::key::PrivateKey;

const ID: &str = "admin-kubeconfig";

/// kubeadm's own administrators, whose copies are looked for.
const SOURCES: [&str; 2] = [
    "/etc/kubernetes/admin.conf",
    "/etc/kubernetes/super-admin.conf",
];

/// Permissions of group and others.
const NOT_THE_OWNERS: u32 = 0o077;

const DAMAGED: Mode = Mode::will_break(
    "admin-kubeconfig.damaged",
    "a ~/.kube/config is not a kubeconfig",
)
.why("kubectl cannot read the file. The node itself does not need it.")
.done("Names the file and the line that copies admin.conf there.")
.source("k8s.io/client-go/tools/clientcmd");
const EXPIRED: Mode = Mode::will_break(
    "admin-kubeconfig.expired",
    "a ~/.kube/config holds the administrator's expired certificate",
)
.why(
    "The copy was made once and nothing renews it: kubectl says \"You must be logged in \
    to the server\" or \"certificate has expired\".",
)
.done(
    "Gives the entry the new certificate and key, where the old key in the same entry \
    proves that its owner is an administrator already.",
)
.source("cmd/kubeadm/app/phases/certs/renewal");
const FOREIGN: Mode = Mode::note(
    "admin-kubeconfig.foreign",
    "a ~/.kube/config holds an expired user that is left alone",
)
.why(
    "The entry has expired, but it is not this cluster's administrator, or the file is \
    not its owner's alone.",
)
.done("Nothing; it is named with what its owner types.")
.source("docs/certificates.md");

/// See the module.
pub const CHECK: Check = Check {
    id: ID,
    about: "expired copies of admin.conf in /root/.kube/config and people's homes; refreshes the \
        administrator's entry, where its private key is there too, and nothing else",
    modes: &[DAMAGED, EXPIRED, FOREIGN],
    roles: &[],
    after: &["certificates"],
    run,
};

fn run(context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
    if let Some(Role::OtherDistribution | Role::NotKubernetes) = context.node.role.value {
        return Ok(Vec::new());
    }
    let guest = context.guest;
    let now = context.settings.now;
    let inventory = context.inventory();
    let Some(authority) = inventory.authorities.get(&Authority::Cluster) else {
        return Ok(Vec::new());
    };
    let admins: Vec<Admin> = SOURCES
        .iter()
        .filter_map(|path| Admin::read(guest, &GuestPath::new(path)))
        .collect();
    // A link to admin.conf is the same file.
    let sources: BTreeSet<RealPath> = admins
        .iter()
        .filter_map(|admin| guest.resolve(&admin.path).ok())
        .collect();
    let look = Look {
        guest,
        admins: &admins,
        authority,
        now,
    };
    let configs = personal_configs(guest);
    Ok(configs
        .iter()
        .filter(|config| !sources.contains(&config.real))
        .filter_map(|config| look.at(config))
        .collect())
}

/// One of kubeadm's administrators as its kubeconfig has it now.
struct Admin {
    path: GuestPath,
    certificate: Certificate,
}

impl Admin {
    fn read(guest: &Guest, path: &GuestPath) -> Option<Self> {
        let (certificate, _) = current_pair(guest, path).ok()?;
        let certificate = Certificate::all_from_pem(&certificate)
            .ok()?
            .into_iter()
            .next()?;
        Some(Self {
            path: path.clone(),
            certificate,
        })
    }

    fn is(&self, certificate: &Certificate) -> bool {
        is_same_user(&self.certificate, certificate)
    }
}

/// Same name, same groups: admin.conf and super-admin.conf differ in both since kubeadm 1.29.
fn is_same_user(one: &Certificate, other: &Certificate) -> bool {
    let groups = |certificate: &Certificate| {
        certificate
            .organizations
            .iter()
            .cloned()
            .collect::<BTreeSet<_>>()
    };
    one.common_name == other.common_name && groups(one) == groups(other)
}

/// Certificate and key of the current user, PEM.
fn current_pair(guest: &Guest, path: &GuestPath) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let config =
        Kubeconfig::parse(&guest.read(path)?, path).with_context(|| format!("reading {path}"))?;
    let user = config
        .current_user()
        .with_context(|| format!("{path}: current-context leads to no user"))?;
    Ok((bytes(guest, &user.certificate)?, bytes(guest, &user.key)?))
}

fn bytes(guest: &Guest, material: &Material) -> anyhow::Result<Vec<u8>> {
    match material {
        Material::Inline(bytes) => Ok(bytes.clone()),
        Material::File(path) => Ok(guest.read(path)?),
        Material::None => bail!("no client certificate"),
    }
}

/// What the copies are compared with.
struct Look<'a> {
    guest: &'a Guest,
    admins: &'a [Admin],
    authority: &'a AuthorityState,
    now: OffsetDateTime,
}

impl Look<'_> {
    fn at(&self, file: &PersonalConfig) -> Option<Finding> {
        let path = &file.path;
        let read = self.guest.read(path).map_err(anyhow::Error::from);
        let config = match read.and_then(|bytes| Kubeconfig::parse(&bytes, path)) {
            Ok(config) => config,
            // A link may lead to anything: nothing of that is shown.
            Err(_) if file.refused.is_some() => return None,
            Err(error) => return Some(not_a_kubeconfig(path, &error)),
        };
        let users: Vec<(&User, Standing)> = config
            .users
            .iter()
            .map(|user| (user, self.standing(path, user)))
            .collect();
        let others: Vec<String> = users
            .iter()
            .filter_map(|(user, standing)| standing.left_alone(user))
            .collect();
        let Some(found) = stale(file, &users) else {
            return note(path, &users, &others);
        };
        if others.is_empty() {
            return Some(found);
        }
        Some(found.with_advice(format!("Left alone in it: {}.", others.join(", "))))
    }

    fn standing(&self, path: &GuestPath, user: &User) -> Standing {
        let other = |why: &str, saw| Standing::Other {
            why: why.to_owned(),
            saw,
        };
        let data = match &user.certificate {
            Material::Inline(data) => data,
            Material::File(_) => return other("its certificate is in a file of its own", None),
            Material::None => return other("no client certificate", None),
        };
        let Some(certificate) = Certificate::all_from_pem(data)
            .ok()
            .and_then(|all| all.into_iter().next())
        else {
            return other("its certificate is unreadable", None);
        };
        let saw = dates(&certificate, path, self.now).and_then(|problem| match problem.verdict {
            Verdict::Expired => Some(format!("expired {}", units::time(certificate.not_after))),
            Verdict::Expiring => Some(format!("expires {}", units::time(certificate.not_after))),
            _ => None,
        });
        if self.authority.issued(&certificate, &[]) != SignatureCheck::Valid {
            return other("another cluster's", saw);
        }
        let Some(admin) = self.admins.iter().find(|admin| admin.is(&certificate)) else {
            return other("not the administrator", saw);
        };
        let Some(saw) = saw else {
            return Standing::Fresh;
        };
        let source = admin.path.clone();
        if let Some(why) = key_problem(user, &certificate) {
            return Standing::Unproved { source, saw, why };
        }
        let mendable = self.authority.signer.is_ok()
            || admin.certificate.not_after > certificate.not_after.max(self.now);
        Standing::Stale {
            source,
            certificate: Box::new(certificate),
            saw,
            mendable,
        }
    }
}

/// Why the entry does not show that whoever wrote it has the administrator's private key.
fn key_problem(user: &User, certificate: &Certificate) -> Option<&'static str> {
    let key = match &user.key {
        Material::Inline(bytes) => PrivateKey::from_pem(bytes),
        // A name of a file proves nothing: the file may be another person's.
        Material::File(_) => return Some("its private key is in a file of its own"),
        Material::None => return Some("it has no private key"),
    };
    match key {
        Ok(key) if certificate.is_proved_by(&key) => None,
        Ok(_) => Some("its private key does not fit its certificate"),
        Err(_) => Some("its private key is unreadable"),
    }
}

fn not_a_kubeconfig(path: &GuestPath, error: &anyhow::Error) -> Finding {
    Finding::new(DAMAGED, format!("{path} is not a kubeconfig"))
        .with_evidence(path, printable(&format!("{error:#}")))
        .with_advice(
            "kubectl refuses it. Left as it is: mend it by hand, or delete it if nobody needs it.",
        )
}

/// The administrator's entries that are over, with what refreshes them where that may be done.
fn stale(file: &PersonalConfig, users: &[(&User, Standing)]) -> Option<Finding> {
    let path = &file.path;
    let mut finding: Option<Finding> = None;
    for (user, standing) in users {
        let Standing::Stale {
            source,
            certificate,
            saw,
            mendable,
        } = standing
        else {
            continue;
        };
        let title = format!("{path}: the administrator's certificate {saw}");
        let found = finding
            .take()
            .unwrap_or_else(|| Finding::new(EXPIRED, title));
        let found = found.with_evidence(
            path,
            format!(
                "user {}: {} {saw}",
                printable(&user.name),
                certificate.subject
            ),
        );
        finding = Some(match (&file.refused, *mendable) {
            (Some(why), _) => found
                .with_advice(format!(
                    "Left as it is, because {why}: a new key written there could reach somebody \
                     else."
                ))
                .with_advice(by_hand(source)),
            (None, true) => {
                found.with_remedy(RefreshKubeconfig::new(file, user, source, certificate))
            }
            (None, false) => found.with_advice(format!(
                "Not mended: {source} is no better, and it cannot be renewed on this node."
            )),
        });
    }
    let becomes_unreadable = file.refused.is_none() && file.meta.uid != file.home_uid;
    finding.map(|found| {
        if becomes_unreadable {
            found.with_advice(of_root(file))
        } else {
            found
        }
    })
}

/// What an administrator types to get the new key all the same.
fn by_hand(source: &GuestPath) -> String {
    format!(
        "If this person is an administrator, let them type after boot: sudo cp {source} \
         ~/.kube/config; sudo chown $(id -u):$(id -g) ~/.kube/config; chmod 600 ~/.kube/config"
    )
}

/// Says what becomes of a copy that belongs to root in another person's home.
fn of_root(file: &PersonalConfig) -> String {
    let PersonalConfig {
        path,
        meta,
        home_uid,
        ..
    } = file;
    format!(
        "It belongs to user {}, and the home folder to user {home_uid}: afterwards that person \
         cannot read it. Where they should, type after boot: sudo chown {home_uid} {path}",
        meta.uid
    )
}

/// A file with nobody of ours in it is named only when something in it is over.
fn note(path: &GuestPath, users: &[(&User, Standing)], others: &[String]) -> Option<Finding> {
    let expired: Vec<String> = users
        .iter()
        .filter_map(|(user, standing)| match standing {
            Standing::Other { saw: Some(saw), .. } => {
                Some(format!("user {} {saw}", printable(&user.name)))
            }
            Standing::Unproved { why, saw, .. } => {
                Some(format!("user {} {saw}, and {why}", printable(&user.name)))
            }
            _ => None,
        })
        .collect();
    if expired.is_empty() {
        return None;
    }
    let unproved = users.iter().find_map(|(_, standing)| match standing {
        Standing::Unproved { source, .. } => Some(source),
        _ => None,
    });
    let what = match unproved {
        Some(_) => "has the administrator's expired certificate without its private key",
        None => "has an expired user that is not this cluster's administrator",
    };
    let found = Finding::new(FOREIGN, format!("{path} {what}"))
        .with_evidence(path, expired.join(", "))
        .with_advice(format!("Left alone: {}.", others.join(", ")));
    Some(match unproved {
        Some(source) => found
            .with_advice(
                "Everybody can have the certificate, so a new key goes only where the old one was.",
            )
            .with_advice(by_hand(source)),
        None => found,
    })
}

/// What one user entry is to us.
enum Standing {
    /// This cluster's administrator, still good.
    Fresh,
    /// This cluster's administrator with the private key, over or nearly.
    Stale {
        source: GuestPath,
        certificate: Box<Certificate>,
        saw: String,
        /// Whether the source is better already or can be renewed.
        mendable: bool,
    },
    /// The administrator's certificate, over or nearly, with no private key that fits it.
    Unproved {
        source: GuestPath,
        saw: String,
        why: &'static str,
    },
    /// Somebody else.
    Other { why: String, saw: Option<String> },
}

impl Standing {
    fn left_alone(&self, user: &User) -> Option<String> {
        let name = printable(&user.name);
        match self {
            Self::Other {
                why,
                saw: Some(saw),
            } => Some(format!("user {name} ({why}; {saw})")),
            Self::Other { why, saw: None } => Some(format!("user {name} ({why})")),
            Self::Unproved { why, saw, .. } => Some(format!("user {name} ({why}; {saw})")),
            Self::Fresh | Self::Stale { .. } => None,
        }
    }
}

/// Puts the administrator's present certificate and key into a copy.
#[derive(Debug)]
struct RefreshKubeconfig {
    path: GuestPath,
    /// Free of links: nothing is followed when it is written.
    real: RealPath,
    user: String,
    source: GuestPath,
    old: Certificate,
}

impl RefreshKubeconfig {
    fn new(file: &PersonalConfig, user: &User, source: &GuestPath, old: &Certificate) -> Self {
        Self {
            path: file.path.clone(),
            real: file.real.clone(),
            user: user.name.clone(),
            source: source.clone(),
            old: old.clone(),
        }
    }

    /// Owner and group stay; what others could do goes, an access list too.
    fn attributes(&self, guest: &Guest) -> anyhow::Result<Attributes> {
        let tree = guest.tree();
        let meta = tree.lstat(self.real.as_path())?;
        let has_list = !matches!(tree.access_list(self.real.as_path()), Ok(None));
        Ok(match has_list || meta.mode & NOT_THE_OWNERS != 0 {
            true => Attributes::Set {
                mode: 0o600,
                uid: meta.uid,
                gid: meta.gid,
            },
            false => Attributes::Keep,
        })
    }
}

impl Remedy for RefreshKubeconfig {
    fn kind(&self) -> &'static str {
        "refresh-kubeconfig"
    }

    fn summary(&self) -> String {
        format!(
            "refresh user {} in {} from {}",
            printable(&self.user),
            self.path,
            self.source
        )
    }

    fn details(&self) -> Vec<String> {
        vec![
            "its private key fits its certificate: whoever uses the file is an administrator \
             already"
                .to_owned(),
            "the owner stays, and so do all other users, clusters and contexts in it; only the \
             owner can read it afterwards"
                .to_owned(),
        ]
    }

    fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut fields = serde_json::Map::new();
        for (key, value) in [
            ("path", self.path.to_string()),
            ("user", self.user.clone()),
            ("source", self.source.to_string()),
        ] {
            fields.insert(key.to_owned(), value.into());
        }
        fields
    }

    /// Reads the source as it will be by then. Copying one that was not renewed would mend nothing.
    fn prepare(&self, context: &Context<'_>) -> anyhow::Result<Prepared> {
        let guest = context.guest;
        let (certificate, key) = current_pair(guest, &self.source)
            .with_context(|| format!("reading {}", self.source))?;
        let leaf = Certificate::all_from_pem(&certificate)?
            .into_iter()
            .next()
            .context("no certificate")?;
        if leaf.not_after <= self.old.not_after || leaf.not_after < context.settings.now {
            // Certificates skipped, or not mendable here: the finding stays, the rest of the plan
            // does not suffer.
            context.ui.note(&format!(
                "{} is not renewed, so {} stays as it is",
                self.source, self.path
            ));
            return Ok(Prepared::default());
        }
        if !is_same_user(&leaf, &self.old) {
            bail!(
                "{} is another user's: {}, not {}",
                self.source,
                leaf.subject,
                self.old.subject
            );
        }
        if !leaf.matches(&PrivateKey::from_pem(&key)?) {
            bail!("{}: its certificate does not match its key", self.source);
        }
        let old = guest.tree().read(self.real.as_path(), READ_LIMIT)?;
        let new = replace_credentials(
            &old,
            &self.user,
            NewMaterial::Inline(&certificate),
            NewMaterial::Inline(&key),
        )
        .with_context(|| format!("editing {}", self.path))?;
        let change = Change::Write {
            path: self.real.clone(),
            content: Content::secret(new),
            attributes: self.attributes(guest)?,
            expect: Expect::now(guest, &self.real)
                .with_context(|| format!("planning to write {}", self.path))?,
        };
        Ok(Prepared {
            changes: vec![change],
            ..Prepared::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(algorithm: &'static rcgen::SignatureAlgorithm) -> (Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        (
            Certificate::from_der(params.self_signed(&key).unwrap().der()).unwrap(),
            key,
        )
    }

    fn problem(certificate: &Certificate, key: Material) -> Option<&'static str> {
        let user = User {
            name: "admin".to_owned(),
            certificate: Material::None,
            key,
            both_specified: false,
            has_body: true,
            others: Vec::new(),
        };
        key_problem(&user, certificate)
    }

    fn inline(pem: &str) -> Material {
        Material::Inline(pem.as_bytes().to_vec())
    }

    #[test]
    fn only_the_private_key_of_the_certificate_proves_anything() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_RSA_SHA256,
        ] {
            let ((certificate, own), (_, other)) = (pair(algorithm), pair(algorithm));
            assert_eq!(problem(&certificate, inline(&own.serialize_pem())), None);
            let wrong = problem(&certificate, inline(&other.serialize_pem()));
            assert_eq!(wrong, Some("its private key does not fit its certificate"));
            let public = problem(&certificate, inline(&own.public_key_pem()));
            assert_eq!(public, Some("its private key is unreadable"));
            let file = problem(
                &certificate,
                Material::File("/etc/kubernetes/pki/admin.key".into()),
            );
            assert_eq!(file, Some("its private key is in a file of its own"));
            assert_eq!(
                problem(&certificate, Material::None),
                Some("it has no private key")
            );
        }
    }

    /// The public part of a key file is what its writer says; the private part is what counts.
    #[test]
    fn a_key_file_with_the_certificates_public_part_proves_nothing() {
        let (certificate, own) = pair(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (_, other) = pair(&rcgen::PKCS_ECDSA_P256_SHA256);
        let own_public = own.public_key_raw().to_vec();
        let other_public = other.public_key_raw().to_vec();
        let mut forged = other.serialize_der();
        let at = forged
            .windows(other_public.len())
            .position(|part| part == other_public)
            .expect("its public part");
        forged[at..at + own_public.len()].copy_from_slice(&own_public);
        let pem = crate::pki::x509::pem::encode("PRIVATE KEY", &forged);
        assert!(problem(&certificate, inline(&pem)).is_some());
    }

    /// As above: modulus and exponent are the certificate's, the rest is of another key, or 1.
    #[test]
    fn a_forged_rsa_key_proves_nothing() {
        let (certificate, _) = pair(&rcgen::PKCS_RSA_SHA256);
        let (_, other) = pair(&rcgen::PKCS_RSA_SHA256);
        // Both are 2048 bits long, so the modulus has the same place in both.
        let modulus = |bytes: &[u8]| {
            bytes
                .windows(4)
                .position(|part| part == [0x02, 0x82, 0x01, 0x01])
                .expect("a modulus")
        };
        let own_public = certificate.public_key.clone();
        let mut forged = other.serialize_der();
        let (from, to) = (modulus(&own_public), modulus(&forged));
        forged[to..to + 261].copy_from_slice(&own_public[from..from + 261]);
        let pem = crate::pki::x509::pem::encode("PRIVATE KEY", &forged);
        assert!(problem(&certificate, inline(&pem)).is_some());
    }

    #[test]
    fn administrators_are_told_apart_by_name_and_groups() {
        let certificate = |name: &str, groups: &[&str]| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            for group in groups {
                params
                    .distinguished_name
                    .push(rcgen::DnType::OrganizationName, *group);
            }
            Certificate::from_der(params.self_signed(&key).unwrap().der()).unwrap()
        };
        let admin = certificate("kubernetes-admin", &["kubeadm:cluster-admins"]);
        let super_admin = certificate("kubernetes-super-admin", &["system:masters"]);
        assert!(is_same_user(
            &admin,
            &certificate("kubernetes-admin", &["kubeadm:cluster-admins"])
        ));
        for other in [
            &super_admin,
            &certificate("kubernetes-admin", &["system:masters"]),
        ] {
            assert!(!is_same_user(&admin, other));
        }
    }
}

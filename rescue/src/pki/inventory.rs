//! Every certificate that a kubeadm node carries, and what is wrong with each. Looks only; nothing
//! here mends.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use time::{Duration, OffsetDateTime};

use super::kept::Kept;
use super::kubelet::{self, KubeletClient};
use super::lent::Lent;
use super::needed_names::{Names, Needed};
use super::profile::{Authority, BOTH, CLIENT, CONFIGS, ConfigProfile, LEAVES, Profile, Usage};
use super::x509::certificate::{Certificate, SignatureCheck, printable};
use super::x509::key::PrivateKey;
use super::x509::names::{Name, NameSource};
use super::x509::pem;
use crate::base::severity::Severity;
use crate::base::units;
use crate::base::yaml;
use crate::guest::{Guest, GuestPath, RealPath};
use crate::kubeconfig::{Kubeconfig, Material};
use crate::node::{Node, Reached};

/// What counts as "expires soon": 30 days, or a tenth of the lifetime where that is less (a signer
/// may issue for a day only). Long enough to boot the node and let its own renewal run, short
/// enough not to touch what kubeadm just renewed.
const SOON: Duration = Duration::days(30);

/// kubeadm's own folder for kubeconfigs.
const KUBERNETES_DIR: &str = "/etc/kubernetes";

/// The state of one certificate, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing wrong.
    Ok,
    /// Ends soon.
    Expiring,
    /// Not written the way its user expects (a file where a link belongs, both data and file).
    Misplaced,
    /// Stands for somebody else than who uses it, with other rights.
    OtherIdentity,
    /// Does not carry a name that its clients use.
    NamesMissing,
    /// Its extended key usage does not allow what it is for.
    WrongUsage,
    /// Begins later than now.
    NotYetValid,
    /// Its key is not there or cannot be read.
    KeyUnusable,
    /// Its key belongs to another certificate.
    KeyMismatch,
    /// Not signed by the authority that its peers trust.
    WrongIssuer,
    /// Over.
    Expired,
    /// Not a certificate.
    Unreadable,
    /// Not there.
    Missing,
}

impl Verdict {
    /// The words for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Expiring => "expiring",
            Self::Misplaced => "misplaced",
            Self::OtherIdentity => "another's",
            Self::NamesMissing => "names missing",
            Self::WrongUsage => "wrong usage",
            Self::NotYetValid => "not yet valid",
            Self::KeyUnusable => "key unusable",
            Self::KeyMismatch => "key mismatch",
            Self::WrongIssuer => "wrong issuer",
            Self::Expired => "expired",
            Self::Unreadable => "unreadable",
            Self::Missing => "missing",
        }
    }
}

/// One thing wrong with a certificate, and where it was seen.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// What kind.
    pub verdict: Verdict,
    /// Guest path.
    pub path: String,
    /// What was seen.
    pub saw: String,
}

impl Problem {
    pub(super) fn new(
        verdict: Verdict,
        path: impl std::fmt::Display,
        saw: impl Into<String>,
    ) -> Self {
        // Error texts and user names carry the guest's own words.
        Self {
            verdict,
            path: path.to_string(),
            saw: printable(&saw.into()),
        }
    }
}

/// Where a leaf is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A pair of files (or one file with both).
    Files {
        /// The certificate.
        certificate: GuestPath,
        /// The key.
        key: GuestPath,
        /// Why the key must stay as it is: others use it too.
        keep_key: Option<String>,
    },
    /// Inline in a kubeconfig.
    Config {
        /// The file.
        path: GuestPath,
        /// The user entry.
        user: String,
    },
}

impl Place {
    /// The file to name when speaking of the certificate.
    pub fn path(&self) -> &GuestPath {
        match self {
            Self::Files { certificate, .. } => certificate,
            Self::Config { path, .. } => path,
        }
    }
}

/// One leaf of the control plane.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// As `kubeadm certs check-expiration` calls it.
    pub name: &'static str,
    /// What else the same file is used as.
    pub also: Vec<&'static str>,
    /// Where it is; `None` for a kubeconfig that cannot be read.
    pub place: Option<Place>,
    /// Who signs it.
    pub authority: Authority,
    /// What it must be usable for.
    pub usages: &'static [Usage],
    /// The common name that its peers insist on.
    pub common_name: Option<&'static str>,
    /// What an unusable one means.
    pub severity: Severity,
    /// The same in words.
    pub consequence: &'static str,
    /// Names that it must carry; none for a client.
    pub needed: Needed,
    /// The certificate, if it could be read.
    pub certificate: Option<Certificate>,
    /// What followed it in the file (intermediate CAs).
    pub chain: Vec<Certificate>,
    /// Whether its private key is on the disk: it makes signatures that the certificate verifies.
    pub has_key: bool,
    /// What is wrong, worst first.
    pub problems: Vec<Problem>,
    /// Why it must be left alone although something is wrong with it.
    pub foreign: Option<String>,
}

impl Leaf {
    /// The worst of its problems.
    pub fn verdict(&self) -> Verdict {
        self.problems
            .first()
            .map_or(Verdict::Ok, |problem| problem.verdict)
    }

    /// Whether it is used as what kubeadm calls so.
    pub fn is(&self, name: &str) -> bool {
        self.name == name || self.also.contains(&name)
    }

    /// Takes on what `other`, which is the same file, is for.
    fn serve_also(&mut self, other: Self) {
        self.also.push(other.name);
        if self.usages != other.usages {
            self.usages = BOTH;
        }
        if other.severity > self.severity {
            (self.severity, self.consequence) = (other.severity, other.consequence);
        }
        self.needed.extend(other.needed);
    }
}

/// Why nothing can be signed with a CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocked {
    /// The certificate is not there.
    CertificateMissing,
    /// It cannot be read.
    CertificateUnreadable(String),
    /// It may not sign certificates.
    NotAnAuthority,
    /// Its key is not on this node: an external CA, or a worker.
    KeyMissing,
    /// The key cannot be read.
    KeyUnreadable(String),
    /// The key belongs to another certificate.
    KeyMismatch,
    /// The CA itself is over.
    Expired(OffsetDateTime),
    /// The CA begins later than now.
    NotYetValid(OffsetDateTime),
}

/// A CA that can sign.
#[derive(Debug, Clone)]
pub struct Signer {
    /// Its certificate: of a bundle, the one that the key belongs to.
    pub certificate: Certificate,
    /// Its key.
    pub key: Rc<PrivateKey>,
}

/// One CA as the node has it.
#[derive(Debug, Clone)]
pub struct AuthorityState {
    /// Which.
    pub authority: Authority,
    /// The certificate file.
    pub certificate_path: GuestPath,
    /// Where its key is, or would be.
    pub key_path: GuestPath,
    /// What the file holds.
    pub certificates: Vec<Certificate>,
    /// What components trust beside it (client CA bundles).
    pub trusted: Vec<Certificate>,
    /// Certificate and key that belong together, even where dates or usages forbid to sign with
    /// them.
    pub pair: Option<Signer>,
    /// With what to sign, or why not.
    pub signer: Result<Signer, Blocked>,
}

impl AuthorityState {
    /// The certificate to show.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.signer
            .as_ref()
            .ok()
            .map(|signer| &signer.certificate)
            .or(self.certificates.first())
    }

    /// Whether the key is not on this node.
    pub fn is_external(&self) -> bool {
        matches!(self.signer, Err(Blocked::KeyMissing))
    }

    /// Whether `leaf` was issued by one of the trusted certificates, `chain` between them allowed.
    pub fn issued(&self, leaf: &Certificate, chain: &[Certificate]) -> SignatureCheck {
        let roots = || self.certificates.iter().chain(&self.trusted);
        let mut best = SignatureCheck::Invalid;
        let mut at = leaf;
        for _ in 0..=chain.len() {
            for root in roots() {
                match at.signed_by(root) {
                    SignatureCheck::Valid => return SignatureCheck::Valid,
                    SignatureCheck::Unknown => best = SignatureCheck::Unknown,
                    SignatureCheck::Invalid => {}
                }
            }
            match chain
                .iter()
                .find(|parent| at.signed_by(parent) == SignatureCheck::Valid)
            {
                Some(parent) => at = parent,
                None => break,
            }
        }
        best
    }

    /// Whether one of `certificates` carries the signing CA's public key.
    pub fn is_among(&self, certificates: &[Certificate]) -> bool {
        certificates.iter().any(|other| {
            self.certificates.iter().any(|own| {
                own.public_key == other.public_key && own.subject_raw == other.subject_raw
            })
        })
    }
}

/// All certificates of a node.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// The CAs that are there or should be.
    pub authorities: BTreeMap<Authority, AuthorityState>,
    /// Leaves of the control plane; none on a worker.
    pub leaves: Vec<Leaf>,
    /// The kubelet's client certificate; `None` where there is no kubelet.
    pub kubelet: Option<KubeletClient>,
    /// The kubelet's self-signed serving certificate, with its path; nothing in a stock kubeadm
    /// cluster verifies it.
    pub kubelet_serving: Option<(GuestPath, Certificate)>,
    /// What etcd says of the cluster, once somebody asked.
    pub(super) kept: OnceCell<Kept>,
    /// What the etcd of other nodes says.
    pub(super) lent: Vec<Rc<Lent>>,
}

impl Inventory {
    /// Reads all of them. Never fails: what cannot be read is a problem of the certificate.
    pub fn read(guest: &Guest, node: &Node, now: OffsetDateTime) -> Self {
        let reader = Reader {
            guest,
            node,
            now,
            directory: certificate_directory(node),
        };
        let authorities = Authority::ALL
            .into_iter()
            .filter_map(|authority| Some((authority, reader.authority(authority)?)))
            .collect::<BTreeMap<_, _>>();
        let mut leaves = match (reader.is_control_plane(), reader.is_etcd_member()) {
            (true, _) => reader.leaves(&authorities),
            (false, true) => reader.members_leaves(&authorities),
            (false, false) => Vec::new(),
        };
        share_keys(guest, node, &mut leaves);
        Self {
            kubelet: kubelet::read(guest, node, now, authorities.get(&Authority::Cluster)),
            kubelet_serving: kubelet::serving(guest, node),
            kept: OnceCell::new(),
            lent: Vec::new(),
            authorities,
            leaves,
        }
    }
}

impl Inventory {
    /// With the names that the user asked for: `NAME` for the API server, `LEAF=NAME` for another.
    /// What does not parse is left out; the command line has refused it.
    #[must_use]
    pub fn with_asked_names(mut self, asked: &[String]) -> Self {
        for (leaf, name) in asked.iter().filter_map(|asked| Name::asked(asked)) {
            let asked = NameSource::new(name, "asked for with --san");
            for leaf in self.leaves.iter_mut().filter(|other| other.is(leaf)) {
                leaf.needed.asked.push(asked.clone());
                let Some(certificate) =
                    leaf.certificate.as_ref().filter(|_| leaf.foreign.is_none())
                else {
                    continue;
                };
                let missing: Vec<NameSource> = leaf
                    .needed
                    .missing(certificate)
                    .into_iter()
                    .filter(|missing| missing.name == asked.name)
                    .collect();
                let path = leaf.place.as_ref().map(|place| place.path().clone());
                let problems = path
                    .map(|path| name_problems(certificate, &missing, &path))
                    .unwrap_or_default();
                let known: Vec<Problem> = problems
                    .into_iter()
                    .filter(|new| !leaf.problems.contains(new))
                    .collect();
                leaf.problems.extend(known);
                leaf.problems
                    .sort_by_key(|problem| std::cmp::Reverse(problem.verdict));
            }
        }
        self
    }
}

impl AuthorityState {
    /// The state of the CA itself; a key that is elsewhere is no fault.
    pub fn verdict(&self, now: OffsetDateTime) -> Verdict {
        match &self.signer {
            Err(Blocked::CertificateMissing) => Verdict::Missing,
            Err(Blocked::CertificateUnreadable(_) | Blocked::NotAnAuthority) => Verdict::Unreadable,
            Err(Blocked::KeyUnreadable(_)) => Verdict::KeyUnusable,
            Err(Blocked::KeyMismatch) => Verdict::KeyMismatch,
            Err(Blocked::Expired(_)) => Verdict::Expired,
            Err(Blocked::NotYetValid(_)) => Verdict::NotYetValid,
            Err(Blocked::KeyMissing) | Ok(_) => self
                .certificate()
                .and_then(|certificate| dates(certificate, &self.certificate_path, now))
                .map_or(Verdict::Ok, |problem| problem.verdict),
        }
    }
}

/// kubeadm's certificatesDir.
pub fn certificate_directory(node: &Node) -> GuestPath {
    node.certificate_dir
        .value
        .clone()
        .unwrap_or_else(|| GuestPath::new("/etc/kubernetes/pki"))
}

/// What is wrong with a certificate's dates, if anything.
pub fn dates(certificate: &Certificate, path: &GuestPath, now: OffsetDateTime) -> Option<Problem> {
    let saw = |verb: &str, time: OffsetDateTime| {
        format!("{} {verb} {}", certificate.subject, units::time(time))
    };
    if certificate.not_after < now {
        return Some(Problem::new(
            Verdict::Expired,
            path,
            saw("expired", certificate.not_after),
        ));
    }
    if certificate.not_before > now {
        return Some(Problem::new(
            Verdict::NotYetValid,
            path,
            saw("is valid only from", certificate.not_before),
        ));
    }
    let lifetime = certificate.not_after - certificate.not_before;
    let soon = certificate.not_after - now < SOON.min(lifetime / 10);
    soon.then(|| {
        Problem::new(
            Verdict::Expiring,
            path,
            saw("expires", certificate.not_after),
        )
    })
}

/// A file that a static pod's flag names.
#[derive(Debug, Clone)]
struct Flagged {
    path: GuestPath,
    /// Whether a mount of the pod brings it into the container.
    is_mounted: bool,
}

impl Flagged {
    /// Of a program that sees the node's own files.
    fn of_node(path: &str) -> Self {
        Self {
            path: GuestPath::new(path),
            is_mounted: true,
        }
    }
}

struct Reader<'a> {
    guest: &'a Guest,
    node: &'a Node,
    now: OffsetDateTime,
    directory: GuestPath,
}

impl Reader<'_> {
    fn is_control_plane(&self) -> bool {
        use crate::node::Role;
        match self.node.role.value {
            Some(Role::ControlPlane) => true,
            Some(Role::Worker | Role::Etcd | Role::OtherDistribution | Role::NotKubernetes) => {
                false
            }
            None => {
                self.node.static_pod("kube-apiserver").is_some()
                    || self.guest.exists(&self.directory.join("apiserver.crt"))
            }
        }
    }

    /// A node that runs kubeadm's etcd without a control plane.
    fn is_etcd_member(&self) -> bool {
        use crate::node::Role;
        match self.node.role.value {
            Some(Role::Etcd) => true,
            Some(Role::Worker) => self.node.static_pod("etcd").is_some(),
            _ => false,
        }
    }

    /// The file of the node that a flag names.
    fn flag(&self, pod: &str, flag: &str) -> Option<Flagged> {
        let pod = self.node.static_pod(pod)?;
        let value = pod.flag(flag).filter(|path| path.starts_with('/'))?;
        Some(match pod.mounts.reach(value) {
            Reached::Host(path) => Flagged {
                path,
                is_mounted: true,
            },
            Reached::Elsewhere | Reached::Image => Flagged {
                path: GuestPath::new(value),
                is_mounted: false,
            },
        })
    }

    /// The first file that is named. What a mount brings into the container is what the process
    /// will open, there or not; what no mount brings exists only inside the container, and then the
    /// default is taken, if that is there.
    fn first_there(&self, flags: &[Option<Flagged>], default: GuestPath) -> GuestPath {
        match flags.iter().flatten().next() {
            Some(Flagged { path, is_mounted })
                if *is_mounted || self.guest.exists(path) || !self.guest.exists(&default) =>
            {
                path.clone()
            }
            _ => default,
        }
    }

    fn authority(&self, authority: Authority) -> Option<AuthorityState> {
        let default = self.directory.join(format!("{}.crt", authority.base()));
        let (api, etcd) = ("kube-apiserver", "etcd");
        let (flags, trusted) = match authority {
            Authority::Cluster => {
                let signing = self.flag("kube-controller-manager", "--cluster-signing-cert-file");
                let client = self.flag(api, "--client-ca-file");
                // A worker has no manifests; its kubelet's config names the CA.
                let kubelet = yaml::text_at(
                    &self.node.kubelet.config,
                    &["authentication", "x509", "clientCAFile"],
                );
                let kubelet = kubelet
                    .filter(|path| path.starts_with('/'))
                    .map(Flagged::of_node);
                (vec![signing, client.clone(), kubelet], client)
            }
            Authority::FrontProxy => (vec![self.flag(api, "--requestheader-client-ca-file")], None),
            Authority::Etcd => {
                let flags = vec![
                    self.flag(etcd, "--trusted-ca-file"),
                    self.flag(api, "--etcd-cafile"),
                ];
                (flags, self.flag(etcd, "--peer-trusted-ca-file"))
            }
        };
        let named = flags.iter().any(Option::is_some);
        let certificate_path = self.first_there(&flags, default);
        let expected = named || (authority == Authority::Cluster && self.is_control_plane());
        if !expected && !self.guest.exists(&certificate_path) {
            return None;
        }
        let beside = self.key_beside(&certificate_path);
        let key_path = match authority {
            Authority::Cluster => self.first_there(
                &[self.flag("kube-controller-manager", "--cluster-signing-key-file")],
                beside,
            ),
            _ => beside,
        };
        let trusted = trusted
            .map(|trusted| trusted.path)
            .filter(|path| *path != certificate_path)
            .and_then(|path| self.guest.read(&path).ok())
            .and_then(|bytes| Certificate::all_from_pem(&bytes).ok())
            .unwrap_or_default();
        let certificates = self.certificates(&certificate_path);
        let pair = match &certificates {
            Ok(certificates) => self.pair(certificates, &key_path),
            Err(blocked) => Err(blocked.clone()),
        };
        let signer = pair
            .clone()
            .and_then(|pair| self.usable(&pair.certificate).map(|()| pair));
        let certificates = certificates.unwrap_or_default();
        Some(AuthorityState {
            authority,
            certificate_path,
            key_path,
            certificates,
            trusted,
            pair: pair.ok(),
            signer,
        })
    }

    /// `ca.key` beside `ca.crt`, as kubeadm calls it; `ca-key.pem` beside `ca.pem` where that is
    /// there: kubespray's and cfssl's.
    fn key_beside(&self, certificate: &GuestPath) -> GuestPath {
        let path = certificate.as_path();
        let kubeadms = GuestPath::new(path.with_extension("key"));
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let cfssls = certificate.parent().join(format!("{stem}-key.pem"));
        if self.guest.exists(&cfssls) && !self.guest.exists(&kubeadms) {
            cfssls
        } else {
            kubeadms
        }
    }

    fn certificates(&self, path: &GuestPath) -> Result<Vec<Certificate>, Blocked> {
        let bytes = self.guest.read(path).map_err(|error| match error {
            error if error.is_not_found() => Blocked::CertificateMissing,
            error => Blocked::CertificateUnreadable(error.to_string()),
        })?;
        Certificate::all_from_pem(&bytes)
            .map_err(|error| Blocked::CertificateUnreadable(format!("{error:#}")))
    }

    fn pair(&self, certificates: &[Certificate], key_path: &GuestPath) -> Result<Signer, Blocked> {
        let key = match self.guest.read(key_path) {
            Ok(bytes) => PrivateKey::from_pem(&bytes)
                .map_err(|error| Blocked::KeyUnreadable(format!("{error:#}")))?,
            Err(error) if error.is_not_found() => {
                return Err(self.blocked_without_key(certificates));
            }
            Err(error) => return Err(Blocked::KeyUnreadable(error.to_string())),
        };
        let certificate = certificates
            .iter()
            .find(|certificate| certificate.matches(&key))
            .ok_or(Blocked::KeyMismatch)?;
        Ok(Signer {
            certificate: certificate.clone(),
            key: Rc::new(key),
        })
    }

    /// An expired CA without a key is above all expired.
    fn blocked_without_key(&self, certificates: &[Certificate]) -> Blocked {
        certificates
            .first()
            .map_or(Blocked::CertificateMissing, |first| {
                match self.usable(first) {
                    Ok(()) => Blocked::KeyMissing,
                    Err(blocked) => blocked,
                }
            })
    }

    fn usable(&self, certificate: &Certificate) -> Result<(), Blocked> {
        if !certificate.may_sign() {
            return Err(Blocked::NotAnAuthority);
        }
        if certificate.not_after < self.now {
            return Err(Blocked::Expired(certificate.not_after));
        }
        if certificate.not_before > self.now {
            return Err(Blocked::NotYetValid(certificate.not_before));
        }
        Ok(())
    }

    fn leaves(&self, authorities: &BTreeMap<Authority, AuthorityState>) -> Vec<Leaf> {
        let names = Names::new(self.guest, self.node, authorities);
        let files = LEAVES.iter().filter_map(|profile| {
            let leaf = self.file_leaf(profile)?;
            Some(Leaf {
                needed: names.of(profile.name),
                ..leaf
            })
        });
        let configs = CONFIGS
            .iter()
            .filter_map(|profile| self.config_leaf(profile, authorities));
        self.judged_once(files.chain(configs), authorities)
    }

    /// What etcd's CA has signed: all that a member without a control plane has.
    fn members_leaves(&self, authorities: &BTreeMap<Authority, AuthorityState>) -> Vec<Leaf> {
        let names = Names::new(self.guest, self.node, authorities);
        let profiles = LEAVES
            .iter()
            .filter(|profile| profile.authority == Authority::Etcd);
        let files = profiles.filter_map(|profile| {
            let leaf = self.file_leaf(profile)?;
            Some(Leaf {
                needed: names.of(profile.name),
                ..leaf
            })
        });
        self.judged_once(files, authorities)
    }

    fn judged_once(
        &self,
        all: impl Iterator<Item = Leaf>,
        authorities: &BTreeMap<Authority, AuthorityState>,
    ) -> Vec<Leaf> {
        let mut leaves: Vec<Leaf> = Vec::new();
        for leaf in all {
            match leaves.iter_mut().find(|have| self.is_one_file(have, &leaf)) {
                Some(have) => have.serve_also(leaf),
                None => leaves.push(leaf),
            }
        }
        leaves
            .into_iter()
            .map(|leaf| self.judged(leaf, authorities))
            .collect()
    }

    /// One file named twice (scheduler and controller manager sharing a kubeconfig, one certificate
    /// for all that etcd does) is one certificate.
    fn is_one_file(&self, one: &Leaf, other: &Leaf) -> bool {
        let (Some(one), Some(other)) = (&one.place, &other.place) else {
            return false;
        };
        let (one, other) = (one.path(), other.path());
        one == other
            || matches!(
                (self.guest.resolve(one), self.guest.resolve(other)),
                (Ok(one), Ok(other)) if one == other
            )
    }

    fn file_leaf(&self, profile: &Profile) -> Option<Leaf> {
        let default =
            |extension: &str| self.directory.join(format!("{}.{extension}", profile.base));
        let (mut certificate, mut key) = (default("crt"), default("key"));
        let mut named = false;
        if let Some(flags) = profile.flags {
            let flagged = self.flag(flags.pod, flags.certificate);
            named = flagged.is_some();
            certificate = self.first_there(&[flagged], certificate);
            key = self.first_there(&[self.flag(flags.pod, flags.key)], key);
        }
        // Without a manifest that names it, a leaf that is not there is not missing: external etcd
        // has none of etcd's.
        if !named
            && !self.is_made_by_kubeadm(profile)
            && !self.guest.exists(&certificate)
            && !self.guest.exists(&key)
        {
            return None;
        }
        let mut leaf = Leaf {
            name: profile.name,
            also: Vec::new(),
            place: None,
            authority: profile.authority,
            usages: profile.usages,
            common_name: profile.common_name,
            severity: profile.severity,
            consequence: profile.consequence,
            needed: Needed::default(),
            certificate: None,
            chain: Vec::new(),
            has_key: false,
            problems: Vec::new(),
            foreign: None,
        };
        self.read_pair(&mut leaf, &certificate, &key);
        leaf.place = Some(Place::Files {
            certificate,
            key,
            keep_key: None,
        });
        Some(leaf)
    }

    /// No manifest names the health check's client, but kubeadm makes one wherever it makes etcd.
    fn is_made_by_kubeadm(&self, profile: &Profile) -> bool {
        let authority = self
            .directory
            .join(format!("{}.key", Authority::Etcd.base()));
        profile.name == "etcd-healthcheck-client"
            && self.node.static_pod("etcd").is_some()
            && self.guest.exists(&authority)
    }

    fn read_pair(&self, leaf: &mut Leaf, certificate: &GuestPath, key: &GuestPath) {
        let bytes = read(self.guest, certificate, &mut leaf.problems);
        let key_bytes = match self.guest.read(key) {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(error.to_string()),
        };
        self.take(
            leaf,
            bytes.as_deref(),
            certificate,
            key_bytes.as_deref().map_err(String::as_str),
            key,
        );
    }

    fn take(
        &self,
        leaf: &mut Leaf,
        certificate: Option<&[u8]>,
        certificate_path: &GuestPath,
        key: Result<&[u8], &str>,
        key_path: &GuestPath,
    ) {
        if let Some(bytes) = certificate {
            match Certificate::all_from_pem(bytes) {
                Ok(all) => {
                    let mut all = all.into_iter();
                    leaf.certificate = all.next();
                    leaf.chain = all.collect();
                }
                Err(error) => {
                    leaf.problems.push(Problem::new(
                        Verdict::Unreadable,
                        certificate_path,
                        format!("{error:#}"),
                    ));
                    // What a person can read still says what it was for.
                    let seen = pem::without_oddity(bytes)
                        .and_then(|bytes| Certificate::all_from_pem(&bytes).ok());
                    let mut seen = seen.unwrap_or_default().into_iter();
                    leaf.certificate = seen.next();
                    leaf.chain = seen.collect();
                }
            }
        }
        let private = key.ok().and_then(|key| PrivateKey::from_pem(key).ok());
        leaf.has_key = leaf
            .certificate
            .as_ref()
            .zip(private)
            .is_some_and(|(leaf, key)| leaf.is_proved_by(&key));
        if let Some(problem) = key_problem(leaf.certificate.as_ref(), key, key_path) {
            leaf.problems.push(problem);
        }
    }

    fn config_leaf(
        &self,
        profile: &ConfigProfile,
        authorities: &BTreeMap<Authority, AuthorityState>,
    ) -> Option<Leaf> {
        let default = GuestPath::new(KUBERNETES_DIR).join(profile.name);
        let flagged = profile.pod.and_then(|pod| self.flag(pod, "--kubeconfig"));
        // No manifest names admin.conf, but kubeadm makes one wherever it makes the controller
        // manager's.
        let is_kubeadms = || {
            self.flag("kube-controller-manager", "--kubeconfig")
                .is_some()
        };
        let named = flagged.is_some() || (profile.name == "admin.conf" && is_kubeadms());
        let path = self.first_there(&[flagged], default);
        if !named && !self.guest.exists(&path) {
            return None;
        }
        let mut leaf = Leaf {
            name: profile.name,
            also: Vec::new(),
            place: None,
            authority: Authority::Cluster,
            usages: CLIENT,
            common_name: None,
            severity: profile.severity,
            consequence: profile.consequence,
            needed: Needed::default(),
            certificate: None,
            chain: Vec::new(),
            has_key: false,
            problems: Vec::new(),
            foreign: None,
        };
        let Some(bytes) = read(self.guest, &path, &mut leaf.problems) else {
            return Some(leaf);
        };
        let config = match Kubeconfig::parse(&bytes, &path) {
            Ok(config) => config,
            Err(error) => {
                leaf.problems.push(Problem::new(
                    Verdict::Unreadable,
                    &path,
                    format!("{error:#}"),
                ));
                return Some(leaf);
            }
        };
        self.read_config(
            &mut leaf,
            &config,
            &path,
            authorities.get(&Authority::Cluster),
        )?;
        Some(leaf)
    }

    /// `None` where the user has other credentials than a certificate.
    fn read_config(
        &self,
        leaf: &mut Leaf,
        config: &Kubeconfig,
        path: &GuestPath,
        authority: Option<&AuthorityState>,
    ) -> Option<()> {
        let Some(user) = config.current_user() else {
            leaf.problems.push(Problem::new(
                Verdict::Unreadable,
                path,
                "its current-context leads to no user",
            ));
            return Some(());
        };
        match (&user.certificate, &user.key) {
            (Material::None, Material::None) if !user.others.is_empty() => return None,
            (Material::Inline(certificate), key) => {
                let inline = match key {
                    Material::Inline(key) => Ok(key.as_slice()),
                    _ => Err("the certificate is inline, its key is not"),
                };
                self.take(leaf, Some(certificate), path, inline, path);
                leaf.place = Some(Place::Config {
                    path: path.clone(),
                    user: user.name.clone(),
                });
            }
            (Material::File(certificate), Material::File(key)) => {
                self.read_pair(leaf, certificate, key);
                leaf.place = Some(Place::Files {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    keep_key: None,
                });
            }
            _ => {
                leaf.problems.push(Problem::new(
                    Verdict::Missing,
                    path,
                    format!("user {} has no client certificate", user.name),
                ));
            }
        }
        leaf.foreign = foreign_config(self.guest, config, leaf, authority);
        Some(())
    }

    fn judged(&self, mut leaf: Leaf, authorities: &BTreeMap<Authority, AuthorityState>) -> Leaf {
        let path = leaf
            .place
            .as_ref()
            .map(|place| place.path().clone())
            .unwrap_or_else(|| GuestPath::new("/"));
        if let Some(certificate) = &leaf.certificate {
            leaf.problems.extend(dates(certificate, &path, self.now));
            if certificate.is_ca {
                leaf.problems.push(Problem::new(
                    Verdict::Unreadable,
                    &path,
                    "this is a CA certificate, not a leaf",
                ));
                leaf.foreign = Some("a CA certificate stands where a leaf belongs".to_owned());
            }
            let authority = authorities
                .get(&leaf.authority)
                .filter(|state| !state.certificates.is_empty());
            if let Some(state) = authority
                && state.issued(certificate, &leaf.chain) == SignatureCheck::Invalid
            {
                let saw = format!(
                    "issued by {}, not by {}",
                    certificate.issuer, state.certificate_path
                );
                leaf.problems
                    .push(Problem::new(Verdict::WrongIssuer, &path, saw));
                let same_name = state
                    .certificates
                    .iter()
                    .any(|ca| ca.subject_raw == certificate.issuer_raw);
                // A serving certificate from a company's own CA is somebody's decision; clients
                // trust that CA, not ours.
                if leaf.name == "apiserver" && !same_name {
                    leaf.foreign = Some(format!("it was issued by {}", certificate.issuer));
                }
            }
            if leaf.foreign.is_none() {
                leaf.problems
                    .extend(usage_problem(certificate, leaf.usages, &path));
                leaf.problems.extend(name_problems(
                    certificate,
                    &leaf.needed.missing(certificate),
                    &path,
                ));
            }
        }
        leaf.problems
            .sort_by_key(|problem| std::cmp::Reverse(problem.verdict));
        leaf
    }
}

/// Go's x509 takes a certificate without any extended key usage for one that may do everything,
/// `kubeadm certs renew` does not ("must specify at least one ExtKeyUsage").
fn usage_problem(certificate: &Certificate, usages: &[Usage], path: &GuestPath) -> Option<Problem> {
    const ANY: &str = "2.5.29.37.0";
    let had = certificate
        .extended_key_usage
        .as_deref()
        .unwrap_or_default();
    if had.is_empty() {
        let saw =
            "has no extended key usage: it works, but `kubeadm certs renew` refuses to renew it";
        return Some(Problem::new(Verdict::WrongUsage, path, saw));
    }
    let lacks = |usage: &&Usage| !had.iter().any(|oid| oid == usage.oid() || oid == ANY);
    let lacking: Vec<&str> = usages
        .iter()
        .filter(lacks)
        .map(|usage| usage.name())
        .collect();
    (!lacking.is_empty()).then(|| {
        let had: Vec<&str> = had.iter().map(|oid| Usage::name_of(oid)).collect();
        let saw = format!(
            "its extended key usage is {}, without {}",
            had.join(", "),
            lacking.join(", ")
        );
        Problem::new(Verdict::WrongUsage, path, saw)
    })
}

fn name_problems(
    certificate: &Certificate,
    missing: &[NameSource],
    path: &GuestPath,
) -> Vec<Problem> {
    let have = certificate
        .alternative_names
        .as_ref()
        .map_or(0, |names| names.names.len());
    let problem = |missing: &NameSource| {
        let saw = format!(
            "lacks {} ({}) among its {have} names",
            missing.name, missing.source
        );
        Problem::new(Verdict::NamesMissing, path, saw)
    };
    missing.iter().map(problem).collect()
}

/// A kubeconfig that neither trusts this cluster's CA nor was issued by it belongs to another
/// cluster.
fn foreign_config(
    guest: &Guest,
    config: &Kubeconfig,
    leaf: &Leaf,
    authority: Option<&AuthorityState>,
) -> Option<String> {
    let state = authority.filter(|state| !state.certificates.is_empty())?;
    let certificate = leaf.certificate.as_ref()?;
    let trusted = trusted_by(guest, config);
    if trusted.is_empty()
        || state.is_among(&trusted)
        || state.issued(certificate, &leaf.chain) != SignatureCheck::Invalid
    {
        return None;
    }
    Some("it trusts another cluster's CA".to_owned())
}

/// The CA certificates of a kubeconfig's current cluster.
pub fn trusted_by(guest: &Guest, config: &Kubeconfig) -> Vec<Certificate> {
    let bytes = match config
        .current_cluster()
        .map(|cluster| &cluster.certificate_authority)
    {
        Some(Material::Inline(bytes)) => Some(bytes.clone()),
        Some(Material::File(path)) => guest.read(path).ok(),
        _ => None,
    };
    bytes
        .and_then(|bytes| Certificate::all_from_pem(&bytes).ok())
        .unwrap_or_default()
}

/// Bytes of a file, or a problem.
pub(super) fn read(
    guest: &Guest,
    path: &GuestPath,
    problems: &mut Vec<Problem>,
) -> Option<Vec<u8>> {
    match guest.read(path) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            let verdict = if error.is_not_found() {
                Verdict::Missing
            } else {
                Verdict::Unreadable
            };
            problems.push(Problem::new(verdict, path, error.to_string()));
            None
        }
    }
}

/// What is wrong with a certificate's key, if anything.
pub(super) fn key_problem(
    certificate: Option<&Certificate>,
    key: Result<&[u8], &str>,
    path: &GuestPath,
) -> Option<Problem> {
    let key = match key.map(PrivateKey::from_pem) {
        Ok(Ok(key)) => key,
        Ok(Err(error)) => {
            return Some(Problem::new(
                Verdict::KeyUnusable,
                path,
                format!("{error:#}"),
            ));
        }
        Err(why) => return Some(Problem::new(Verdict::KeyUnusable, path, why)),
    };
    let certificate = certificate?;
    (!certificate.matches(&key)).then(|| {
        Problem::new(
            Verdict::KeyMismatch,
            path,
            format!("this key is not that of {}", certificate.subject),
        )
    })
}

/// Keys that more than one thing uses keep their bytes: replacing one would break the other. The
/// service accounts' key is the worst of them: every token in the cluster is signed with it.
fn share_keys(guest: &Guest, node: &Node, leaves: &mut [Leaf]) {
    let mut users: BTreeMap<RealPath, Vec<String>> = BTreeMap::new();
    let real_key = |leaf: &Leaf| match &leaf.place {
        Some(Place::Files { key, .. }) => guest.resolve(key).ok(),
        _ => None,
    };
    for leaf in leaves.iter() {
        if let Some(real) = real_key(leaf) {
            users.entry(real).or_default().push(leaf.name.to_owned());
        }
    }
    const SERVICE_ACCOUNT: [(&str, &str); 3] = [
        ("kube-apiserver", "--service-account-key-file"),
        ("kube-apiserver", "--service-account-signing-key-file"),
        (
            "kube-controller-manager",
            "--service-account-private-key-file",
        ),
    ];
    for (pod, flag) in SERVICE_ACCOUNT {
        let path = node
            .static_pod(pod)
            .and_then(|pod| pod.flag(flag))
            .map(GuestPath::new);
        if let Some(real) = path.and_then(|path| guest.resolve(&path).ok()) {
            users
                .entry(real)
                .or_default()
                .push("service accounts".to_owned());
        }
    }
    for leaf in leaves.iter_mut() {
        let Some(others) = real_key(leaf).and_then(|real| users.get(&real)) else {
            continue;
        };
        let others: Vec<&str> = others
            .iter()
            .map(String::as_str)
            .filter(|name| *name != leaf.name)
            .collect();
        if let Some(Place::Files { keep_key, .. }) = &mut leaf.place
            && !others.is_empty()
        {
            *keep_key = Some(format!("the key is also used by {}", others.join(", ")));
        }
    }
}

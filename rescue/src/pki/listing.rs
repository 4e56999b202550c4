//! The inventory as a product of its own: every certificate of a node as one row that says all
//! about it, and what lies beside them unused.

use std::collections::BTreeSet;
use time::OffsetDateTime;

use super::inventory::{AuthorityState, Blocked, Inventory, Leaf, Place, Problem, Verdict, dates};
use super::profile::Authority;
use super::references::{References, STORE};
use super::strays::{self, Stray};
use super::x509::certificate::{Certificate, SignatureCheck, printable};
use crate::guest::{Guest, GuestPath, RealPath};
use crate::node::Node;

/// Where kubespray keeps the certificates of the etcd that it runs outside of Kubernetes.
pub(super) const KUBESPRAY_ETCD: &str = "/etc/ssl/etcd/ssl";

/// Bundles of public CAs that come with the system; nobody's certificates here.
const SYSTEM_BUNDLES: [&str; 4] = ["/etc/ssl/certs", "/etc/pki", "/usr/share", "/usr/lib"];

/// What to know about `kubelet-server-current.pem`.
const ASKED_FOR: &str = "serverTLSBootstrap: the kubelet asks the cluster for it, and somebody \
    must approve each request (kubectl get csr, kubectl certificate approve NAME)";

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A pair of files of kubeadm's.
    Leaf,
    /// The client certificate in one of kubeadm's kubeconfigs.
    Kubeconfig,
    /// What the kubelet authenticates with.
    KubeletClient,
    /// What the kubelet serves with.
    KubeletServing,
    /// One of kubeadm's CAs.
    Authority,
    /// Something else that is in use, or that kubespray's etcd keeps.
    Other,
}

/// Who makes and renews it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manager {
    /// kubeadm.
    Kubeadm,
    /// The kubelet itself.
    Kubelet,
    /// kubespray.
    Kubespray,
    /// Whoever runs this cluster.
    Other,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Row {
    /// As `kubeadm certs check-expiration` calls it; the file's name for what kubeadm does not
    /// know.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Guest path.
    pub path: String,
    /// Guest path of the key; `None` where it is not known, or inline in `path`.
    pub key_path: Option<String>,
    /// Last moment, if it could be read.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires: Option<OffsetDateTime>,
    /// Seconds from now to that moment; negative when it is over.
    pub residual_seconds: Option<i64>,
    /// Name of the CA; empty for a CA itself.
    pub authority: String,
    /// Whether the CA's key is not on this node.
    pub externally_managed: bool,
    /// Whether this is a CA.
    pub is_authority: bool,
    /// State.
    pub verdict: Verdict,
    /// Why, worst first.
    pub problems: Vec<Problem>,
    /// Subject for people.
    pub subject: Option<String>,
    /// Issuer for people.
    pub issuer: Option<String>,
    /// `DNS:node1`, `IP:10.0.0.1` …
    pub alternative_names: Vec<String>,
    /// `RSA-2048`, `ECDSA-P256` …; `None` for kinds that kubeadm never uses.
    pub key_type: Option<String>,
    /// First moment.
    #[serde(with = "time::serde::rfc3339::option")]
    pub not_before: Option<OffsetDateTime>,
    /// Serial number, hexadecimal.
    pub serial: Option<String>,
    /// `serverAuth`, `clientAuth`, or dotted OIDs.
    pub extended_key_usage: Vec<String>,
    /// What names the file: `kube-apiserver --tls-cert-file`.
    pub used_by: Vec<String>,
    /// Who renews it.
    pub managed_by: Manager,
    /// A sentence worth knowing that is no fault.
    pub remark: Option<String>,
}

/// All that is to be listed of one node.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// kubeadm's leaves by name, the kubelet's, what else is in use, then the CAs.
    pub rows: Vec<Row>,
    /// Files among the certificates that nothing on the node names.
    pub unreferenced: Vec<Stray>,
}

impl Listing {
    /// Reads everything. Never fails: what cannot be read is a problem of the certificate.
    pub fn read(guest: &Guest, node: &Node, now: OffsetDateTime) -> Self {
        let (lister, listing) = Self::of_rows(guest, node, now);
        let mut used: BTreeSet<RealPath> = listing
            .rows
            .iter()
            .flat_map(|row| lister.files_of(row))
            .collect();
        used.extend(lister.references.files().map(|(real, _)| real.clone()));
        Self {
            unreferenced: strays::find(guest, node, &used),
            ..listing
        }
    }

    /// Without what nothing names.
    fn of_rows<'a>(guest: &'a Guest, node: &Node, now: OffsetDateTime) -> (Lister<'a>, Self) {
        let inventory = Inventory::read(guest, node, now);
        let lister = Lister {
            guest,
            now,
            references: References::read(guest, node),
        };
        let mut rows: Vec<Row> = inventory
            .leaves
            .iter()
            .map(|leaf| lister.leaf(leaf, &inventory))
            .collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows.extend(lister.kubelet(&inventory));
        let authorities: Vec<Row> = inventory
            .authorities
            .values()
            .map(|state| lister.authority(state))
            .collect();
        let known: BTreeSet<RealPath> = rows
            .iter()
            .chain(&authorities)
            .flat_map(|row| lister.files_of(row))
            .collect();
        rows.extend(lister.others(&known));
        rows.extend(authorities);
        (
            lister,
            Self {
                rows,
                unreferenced: Vec::new(),
            },
        )
    }

    /// Whether every certificate is good and will stay so for a while.
    pub fn is_healthy(&self) -> bool {
        self.rows.iter().all(|row| row.verdict == Verdict::Ok)
    }
}

/// Leaves that something on the node uses and that are none of kubeadm's or the kubelet's: of
/// kubespray's etcd, of a network plugin.
pub fn others_in_use(guest: &Guest, node: &Node, now: OffsetDateTime) -> Vec<Row> {
    let Listing { rows, .. } = Listing::of_rows(guest, node, now).1;
    rows.into_iter()
        .filter(|row| {
            row.kind == Kind::Other
                && row.managed_by != Manager::Kubelet
                && !row.is_authority
                && !row.used_by.is_empty()
        })
        .collect()
}

impl Row {
    /// With nothing known but what it is; filled in by struct update.
    pub fn new(name: impl Into<String>, kind: Kind, path: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind,
            path: path.into(),
            key_path: None,
            expires: None,
            residual_seconds: None,
            authority: String::new(),
            externally_managed: false,
            is_authority: kind == Kind::Authority,
            verdict: Verdict::Ok,
            problems: Vec::new(),
            subject: None,
            issuer: None,
            alternative_names: Vec::new(),
            key_type: None,
            not_before: None,
            serial: None,
            extended_key_usage: Vec::new(),
            used_by: Vec::new(),
            managed_by: Manager::Kubeadm,
            remark: None,
        }
    }

    fn with_certificate(mut self, certificate: Option<&Certificate>, now: OffsetDateTime) -> Self {
        let Some(certificate) = certificate else {
            return self;
        };
        self.expires = Some(certificate.not_after);
        self.residual_seconds = Some((certificate.not_after - now).whole_seconds());
        self.subject = Some(certificate.subject.clone());
        self.issuer = Some(certificate.issuer.clone());
        self.alternative_names = certificate
            .alternative_names
            .as_ref()
            .map(|names| names.names.clone())
            .unwrap_or_default();
        self.key_type = certificate.algorithm.map(|algorithm| algorithm.to_string());
        self.not_before = Some(certificate.not_before);
        self.serial = Some(certificate.serial.clone());
        let usages = certificate
            .extended_key_usage
            .as_deref()
            .unwrap_or_default();
        self.extended_key_usage = usages
            .iter()
            .map(|oid| usage_name(oid).to_owned())
            .collect();
        self
    }

    fn with_problems(mut self, verdict: Verdict, problems: Vec<Problem>) -> Self {
        self.verdict = verdict;
        self.problems = problems;
        self
    }
}

struct Lister<'a> {
    guest: &'a Guest,
    now: OffsetDateTime,
    references: References,
}

impl Lister<'_> {
    fn leaf(&self, leaf: &Leaf, inventory: &Inventory) -> Row {
        let external = inventory
            .authorities
            .get(&leaf.authority)
            .is_some_and(AuthorityState::is_external);
        let kind = if leaf.name.ends_with(".conf") {
            Kind::Kubeconfig
        } else {
            Kind::Leaf
        };
        // A kubeconfig that cannot be read has no place; its problem names the file.
        let path = leaf.place.as_ref().map(|place| place.path().clone());
        let path = path.or_else(|| {
            leaf.problems
                .first()
                .map(|problem| GuestPath::new(&problem.path))
        });
        let row = Row {
            key_path: match &leaf.place {
                Some(Place::Files { key, .. }) => Some(key.to_string()),
                _ => None,
            },
            authority: leaf.authority.name().to_owned(),
            externally_managed: external || leaf.foreign.is_some(),
            used_by: path
                .as_ref()
                .map(|path| self.references.users(self.guest, path))
                .unwrap_or_default(),
            managed_by: path
                .as_ref()
                .map_or(Manager::Kubeadm, |path| self.manager(path)),
            remark: leaf.foreign.clone(),
            ..Row::new(
                leaf.name,
                kind,
                path.map_or_else(String::new, |path| path.to_string()),
            )
        };
        let row = row.with_certificate(leaf.certificate.as_ref(), self.now);
        kubespray_remark(row.with_problems(leaf.verdict(), leaf.problems.clone()))
    }

    /// Its client certificate, and the one it serves with.
    fn kubelet(&self, inventory: &Inventory) -> Vec<Row> {
        let external = inventory
            .authorities
            .get(&Authority::Cluster)
            .is_some_and(AuthorityState::is_external);
        let mut rows = Vec::new();
        if let Some(client) = &inventory.kubelet {
            let row = Row {
                authority: Authority::Cluster.name().to_owned(),
                externally_managed: external,
                used_by: self.references.users(self.guest, client.path()),
                managed_by: Manager::Kubelet,
                remark: client.foreign.clone(),
                ..Row::new(
                    "kubelet.conf",
                    Kind::KubeletClient,
                    client.path().to_string(),
                )
            };
            let row = row.with_certificate(client.certificate.as_ref(), self.now);
            rows.push(row.with_problems(client.verdict(), client.problems.clone()));
        }
        if let Some((path, certificate)) = &inventory.kubelet_serving {
            let row = Row {
                authority: "self".to_owned(),
                key_path: Some(path.parent().join("kubelet.key").to_string()),
                used_by: self.references.users(self.guest, path),
                managed_by: Manager::Kubelet,
                remark: Some(
                    "the kubelet's own, made once and never renewed by it; stock clusters do not \
                     verify it"
                        .to_owned(),
                ),
                ..Row::new("kubelet.crt", Kind::KubeletServing, path.to_string())
            };
            rows.push(self.dated(row, certificate, path));
        }
        rows
    }

    fn dated(&self, row: Row, certificate: &Certificate, path: &GuestPath) -> Row {
        let problem = dates(certificate, path, self.now);
        let verdict = problem
            .as_ref()
            .map_or(Verdict::Ok, |problem| problem.verdict);
        row.with_certificate(Some(certificate), self.now)
            .with_problems(verdict, problem.into_iter().collect())
    }

    fn authority(&self, state: &AuthorityState) -> Row {
        let verdict = state.verdict(self.now);
        let row = Row {
            key_path: Some(state.key_path.to_string()),
            externally_managed: state.is_external(),
            used_by: self.references.users(self.guest, &state.certificate_path),
            managed_by: self.manager(&state.certificate_path),
            remark: state
                .is_external()
                .then(|| format!("its key is not on this node ({})", state.key_path)),
            ..Row::new(
                state.authority.name(),
                Kind::Authority,
                state.certificate_path.to_string(),
            )
        };
        let problems = if verdict == Verdict::Ok {
            Vec::new()
        } else {
            vec![self.reason(state, verdict)]
        };
        kubespray_remark(
            row.with_certificate(state.certificate(), self.now)
                .with_problems(verdict, problems),
        )
    }

    fn reason(&self, state: &AuthorityState, verdict: Verdict) -> Problem {
        let dated = state
            .certificate()
            .and_then(|certificate| dates(certificate, &state.certificate_path, self.now));
        let (path, saw) = match &state.signer {
            Err(Blocked::CertificateUnreadable(why)) => (&state.certificate_path, why.clone()),
            Err(Blocked::CertificateMissing) => (&state.certificate_path, "not there".to_owned()),
            Err(Blocked::NotAnAuthority) => (
                &state.certificate_path,
                "basicConstraints or key usage forbid signing".to_owned(),
            ),
            Err(Blocked::KeyUnreadable(why)) => (&state.key_path, why.clone()),
            Err(Blocked::KeyMismatch) => (
                &state.key_path,
                format!("its public key is not that of {}", state.certificate_path),
            ),
            _ => match dated {
                Some(problem) => return problem,
                None => (&state.certificate_path, verdict.words().to_owned()),
            },
        };
        Problem {
            verdict,
            path: path.to_string(),
            saw: printable(&saw),
        }
    }

    /// What is in use, or kept by kubespray's etcd, and not among `known`.
    fn others(&self, known: &BTreeSet<RealPath>) -> Vec<Row> {
        let mut files: Vec<(RealPath, GuestPath)> = self
            .references
            .files()
            .map(|(real, named)| (real.clone(), named.path.clone()))
            .collect();
        let kubespray = GuestPath::new(KUBESPRAY_ETCD);
        for entry in self.guest.read_dir(&kubespray).unwrap_or_default() {
            let path = kubespray.join(&entry.name);
            files.extend(self.guest.resolve(&path).ok().map(|real| (real, path)));
        }
        let mut seen = known.clone();
        files
            .into_iter()
            .filter(|(real, _)| seen.insert(real.clone()))
            .filter_map(|(_, path)| self.other(&path))
            .collect()
    }

    /// `None` for what holds no certificate.
    fn other(&self, path: &GuestPath) -> Option<Row> {
        if SYSTEM_BUNDLES
            .iter()
            .any(|folder| path.as_path().starts_with(folder))
        {
            return None;
        }
        let all = Certificate::all_from_pem(&strays::read_small(self.guest, path)?).ok()?;
        // Of a bundle, what ends first; a leaf's chain ends later than the leaf where it was made
        // with care.
        let certificate = match all.first() {
            Some(first) if !first.is_ca => first,
            _ => all.iter().min_by_key(|certificate| certificate.not_after)?,
        };
        let self_signed = certificate.signed_by(certificate) == SignatureCheck::Valid;
        let authority = match (self_signed, certificate.is_ca) {
            (true, true) => String::new(),
            (true, false) => "self".to_owned(),
            (false, _) => common_name(&certificate.issuer),
        };
        let name = path.as_path().file_name()?.to_string_lossy().into_owned();
        let used_by = self.references.users(self.guest, path);
        let is_kubelets = used_by.iter().any(|user| user == STORE);
        let several = (all.len() > 1).then(|| format!("the file holds {} certificates", all.len()));
        let row = Row {
            authority,
            externally_managed: true,
            is_authority: certificate.is_ca,
            used_by,
            managed_by: match self.manager(path) {
                _ if is_kubelets => Manager::Kubelet,
                Manager::Kubeadm => Manager::Other,
                manager => manager,
            },
            remark: if is_kubelets {
                Some(ASKED_FOR.to_owned())
            } else {
                several
            },
            ..Row::new(printable(&name), Kind::Other, path.to_string())
        };
        Some(kubespray_remark(self.dated(row, certificate, path)))
    }

    fn manager(&self, path: &GuestPath) -> Manager {
        let below =
            |folder: &GuestPath| match (self.guest.resolve(path), self.guest.resolve(folder)) {
                (Ok(file), Ok(folder)) => file.as_path().starts_with(folder.as_path()),
                _ => path.as_path().starts_with(folder.as_path()),
            };
        if below(&GuestPath::new(KUBESPRAY_ETCD)) {
            Manager::Kubespray
        } else {
            Manager::Kubeadm
        }
    }

    /// Certificate and key of a row, as files.
    fn files_of(&self, row: &Row) -> Vec<RealPath> {
        let paths = std::iter::once(&row.path)
            .chain(&row.key_path)
            .filter(|path| !path.is_empty());
        paths
            .filter_map(|path| self.guest.resolve(&GuestPath::new(path)).ok())
            .collect()
    }
}

fn kubespray_remark(row: Row) -> Row {
    if row.managed_by != Manager::Kubespray {
        return row;
    }
    let sentence = "not kubeadm's: renewed by kubespray";
    let remark = match &row.remark {
        Some(remark) => format!("{sentence}; {remark}"),
        None => sentence.to_owned(),
    };
    Row {
        remark: Some(remark),
        ..row
    }
}

/// The common name in a subject as it is shown, else the whole of it.
fn common_name(subject: &str) -> String {
    let name = subject
        .split(", ")
        .filter_map(|part| part.strip_prefix("CN="))
        .last();
    name.unwrap_or(subject).to_owned()
}

fn usage_name(oid: &str) -> &str {
    match oid {
        "1.3.6.1.5.5.7.3.1" => "serverAuth",
        "1.3.6.1.5.5.7.3.2" => "clientAuth",
        other => other,
    }
}

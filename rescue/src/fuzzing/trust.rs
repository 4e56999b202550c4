//! Two disks made of shuffled true and forged facts: whatever they say of themselves, nothing
//! crosses between them without its proof.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::OnceLock;

use base64::Engine as _;
use time::{Duration, OffsetDateTime};

use crate::base::ui::Silent;
use crate::change::Change;
use crate::finding::{Context, Facts};
use crate::guest::Guest;
use crate::node::Node;
use crate::pki::peer::Peer;
use crate::pki::profile::CLIENT;
use crate::pki::service_account::public_pem;
use crate::pki::trust::etcd::{Claim, Listed, broken_rule, units};
use crate::pki::trust::{Party, Permit, crossing};
use crate::pki::x509::certificate::{Certificate, SignatureCheck};
use crate::pki::x509::issue::{Issuer, Request, Validity, issue, subject};
use crate::pki::x509::key::{Algorithm, PrivateKey};
use crate::plan;
use crate::settings::Settings;
use crate::tree::MemoryTree;

const PKI: &str = "/etc/kubernetes/pki";
const CURRENT: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

/// Certificate and key of a CA, PEM.
struct Ca {
    certificate: String,
    key: String,
}

/// What facts are made of; made once, because keys take their time.
struct Pool {
    /// The cluster's CA, and one that somebody made under the same name.
    authorities: [Ca; 2],
    /// Subject by subject: certificate by each CA, and their key.
    leaves: Vec<([String; 2], String)>,
    /// A key that is no certificate's.
    stranger: String,
    /// Service account keys, one for each disk.
    accounts: [String; 2],
}

/// Common name and organization; the first two are a control plane's.
const SUBJECTS: [(&str, &str); 6] = [
    ("kube-apiserver-kubelet-client", "system:masters"),
    ("system:kube-scheduler", ""),
    ("system:node:worker1", "system:nodes"),
    ("system:node:master01", "system:nodes"),
    ("kubernetes-admin", "system:masters"),
    ("jane", "dev"),
];

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_795_420_800).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// # Panics
/// Where no key can be made.
#[allow(
    clippy::expect_used,
    reason = "a fuzzer without keys has nothing to do"
)]
fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| make().expect("keys for the fuzzer"))
}

fn make() -> anyhow::Result<Pool> {
    let key = || PrivateKey::generate(Algorithm::P256);
    let authority = || -> anyhow::Result<Ca> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut parameters = rcgen::CertificateParams::new(Vec::new())?;
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, "kubernetes");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            rcgen::KeyUsagePurpose::KeyCertSign,
            rcgen::KeyUsagePurpose::DigitalSignature,
        ];
        (parameters.not_before, parameters.not_after) =
            (now() - Duration::days(900), now() + Duration::days(900));
        Ok(Ca {
            certificate: parameters.self_signed(&pair)?.pem(),
            key: pair.serialize_pem(),
        })
    };
    let authorities = [authority()?, authority()?];
    let mut leaves = Vec::new();
    for (name, group) in SUBJECTS {
        let key = key()?;
        let groups: Vec<&str> = Some(group)
            .filter(|group| !group.is_empty())
            .into_iter()
            .collect();
        let by = |ca: &Ca| -> anyhow::Result<String> {
            let certificate = parsed(&ca.certificate).ok_or_else(|| anyhow::anyhow!("a CA"))?;
            let issuer = PrivateKey::from_pem(ca.key.as_bytes())?;
            let request = Request {
                subject_raw: &subject(&groups, name)?,
                alternative_names: None,
                public_key_info: &key.public_key_info(),
                key_encipherment: false,
                usages: CLIENT,
                validity: Validity {
                    not_before: now() - Duration::days(800),
                    not_after: now() - Duration::days(400),
                },
            };
            Ok(issue(
                Issuer {
                    certificate: &certificate,
                    key: &issuer,
                },
                request,
            )?
            .to_pem())
        };
        leaves.push(([by(&authorities[0])?, by(&authorities[1])?], key.to_pem()?));
    }
    let accounts = [key()?.to_pem()?, key()?.to_pem()?];
    Ok(Pool {
        authorities,
        leaves,
        stranger: key()?.to_pem()?,
        accounts,
    })
}

fn parsed(pem: &str) -> Option<Certificate> {
    Certificate::all_from_pem(pem.as_bytes())
        .ok()?
        .into_iter()
        .next()
}

/// Choices, one byte each; 0 where there are no more.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn of(&mut self, many: usize) -> usize {
        let (first, rest) = self
            .0
            .split_first()
            .map_or((0, &[][..]), |(first, rest)| (usize::from(*first), rest));
        self.0 = rest;
        first % many
    }
}

/// A disk, and what is true of it.
struct Disk {
    guest: Guest,
    /// By CA: whether its private key, or a control plane's leaf of it with its key, is on the
    /// disk.
    is_control_plane: [bool; 2],
    /// Whether the CA's private key is on the disk.
    has_ca_key: [bool; 2],
    /// By CA: names of nodes whose certificate of it is on the disk with its key.
    nodes: [BTreeSet<&'static str>; 2],
    /// Every private key on it.
    keys: Vec<String>,
}

/// A certificate of the pool and a key beside it, or not; what that proves is written down.
fn leaf(choices: &mut Choices<'_>, disk: &mut Disk) -> Option<(String, String)> {
    let pool = pool();
    let (which, by, beside) = (choices.of(SUBJECTS.len() + 1), choices.of(2), choices.of(3));
    let (certificates, key) = pool.leaves.get(which)?;
    let name = SUBJECTS[which].0;
    let key = match beside {
        0 => key.clone(),
        1 => pool.stranger.clone(),
        _ => String::new(),
    };
    if beside == 0 {
        disk.keys.push(key.clone());
        disk.is_control_plane[by] |= which < 2;
        disk.nodes[by].extend(name.strip_prefix("system:node:"));
    }
    Some((certificates[by].clone(), key))
}

fn disk(choices: &mut Choices<'_>, number: usize) -> Disk {
    let pool = pool();
    let mut disk = Disk {
        guest: MemoryTree::new().into_guest(),
        is_control_plane: [false; 2],
        has_ca_key: [false; 2],
        nodes: Default::default(),
        keys: Vec::new(),
    };
    let name = ["worker1", "master01", "worker2"][choices.of(3)];
    let mut tree = MemoryTree::new()
        .file("/etc/hostname", name)
        .file("/etc/os-release", "ID=debian\n");
    tree = tree.file("/etc/machine-id", format!("{:032x}\n", choices.of(3)));
    let trusts = choices.of(3);
    if let Some(ca) = pool.authorities.get(choices.of(3)) {
        tree = tree.file(format!("{PKI}/ca.crt"), ca.certificate.clone());
    }
    let has_key = choices.of(4);
    if let Some(ca) = pool.authorities.get(has_key) {
        tree = tree.file(format!("{PKI}/ca.key"), ca.key.clone());
        disk.keys.push(ca.key.clone());
        (disk.is_control_plane[has_key], disk.has_ca_key[has_key]) = (true, true);
    }
    for base in ["apiserver-kubelet-client", "apiserver"] {
        if let Some((certificate, key)) = leaf(choices, &mut disk) {
            tree = tree
                .file(format!("{PKI}/{base}.crt"), certificate)
                .file(format!("{PKI}/{base}.key"), key);
        }
    }
    if let Some((certificate, key)) = leaf(choices, &mut disk) {
        tree = tree.file(
            "/etc/kubernetes/scheduler.conf",
            config(trusts, "x", &certificate, &key),
        );
    }
    if let Some((certificate, key)) = leaf(choices, &mut disk) {
        let dated = "/var/lib/kubelet/pki/kubelet-client-2023-02-23-08-05-00.pem";
        tree = tree.file(dated, certificate + &key).link(CURRENT, dated);
    }
    if choices.of(2) == 0 {
        tree = tree.file(
            "/etc/kubernetes/kubelet.conf",
            config_of_files(
                trusts,
                ["default-auth", "system:node:worker1"][choices.of(2)],
            ),
        );
    }
    match choices.of(3) {
        0 => tree = tree.file("/etc/kubernetes/manifests/kube-apiserver.yaml", ""),
        1 => tree = manifests(tree),
        _ => {}
    }
    if choices.of(2) == 0 {
        let key = &pool.accounts[number];
        let public = PrivateKey::from_pem(key.as_bytes())
            .map(|key| public_pem(&key))
            .unwrap_or_default();
        tree = tree
            .file(format!("{PKI}/sa.key"), key.clone())
            .file(format!("{PKI}/sa.pub"), public);
        disk.keys.push(key.clone());
    } else if choices.of(2) == 0 {
        // The public half of the other disk's.
        let key = PrivateKey::from_pem(pool.accounts[1 - number].as_bytes());
        tree = tree.file(
            format!("{PKI}/sa.pub"),
            key.map(|key| public_pem(&key)).unwrap_or_default(),
        );
    }
    disk.guest = tree.into_guest();
    disk.guest.source = format!("disk{number}");
    disk
}

fn manifests(tree: MemoryTree) -> MemoryTree {
    let pod = |name: &str, flags: &str| {
        format!(
            "kind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{command: [{name}, \
             {flags}]}}]}}\n"
        )
    };
    let api = format!(
        "--client-ca-file={PKI}/ca.crt, --service-account-key-file={PKI}/sa.pub, \
         --service-account-signing-key-file={PKI}/sa.key, --advertise-address=10.0.0.1"
    );
    let manager = format!(
        "--cluster-signing-cert-file={PKI}/ca.crt, --cluster-signing-key-file={PKI}/ca.key"
    );
    tree.file(
        "/etc/kubernetes/manifests/kube-apiserver.yaml",
        pod("kube-apiserver", &api),
    )
    .file(
        "/etc/kubernetes/manifests/kube-controller-manager.yaml",
        pod("kube-controller-manager", &manager),
    )
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn frame(trusts: usize, user: &str, credentials: &str) -> String {
    let ca = pool()
        .authorities
        .get(trusts)
        .map(|ca| base64(&ca.certificate))
        .unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster:\n    \
         certificate-authority-data: {ca}\n    server: https://10.0.0.1:6443\n\
         contexts:\n- name: x\n  context: {{cluster: c, user: {user}}}\ncurrent-context: x\n\
         users:\n- name: {user}\n  user:\n{credentials}"
    )
}

fn config(trusts: usize, user: &str, certificate: &str, key: &str) -> String {
    let (certificate, key) = (base64(certificate), base64(key));
    frame(
        trusts,
        user,
        &format!("    client-certificate-data: {certificate}\n    client-key-data: {key}\n"),
    )
}

fn config_of_files(trusts: usize, user: &str) -> String {
    frame(
        trusts,
        user,
        &format!("    client-certificate: {CURRENT}\n    client-key: {CURRENT}\n"),
    )
}

/// Two disks of shuffled facts in one run, each as the receiver once.
///
/// # Panics
/// Where something crosses without its proof.
pub fn trust(data: &[u8]) {
    let mut choices = Choices(data);
    let only_signs = choices.of(2) == 1;
    let disks = [disk(&mut choices, 0), disk(&mut choices, 1)];
    let settings = Settings {
        now: now(),
        now_given: true,
        renew_ca: choices.of(2) == 1,
        ..Settings::default()
    };
    let nodes = disks.each_ref().map(|disk| Node::read(&disk.guest));
    let peers =
        [0, 1].map(|number: usize| Peer::read(&disks[number].guest, &nodes[number], &settings));
    let are_control_planes = [0, 1]
        .into_iter()
        .any(|ca| disks.iter().all(|disk| disk.is_control_plane[ca]));
    for receiver in [0, 1] {
        let donor = 1 - receiver;
        let party = Party {
            only_signs,
            ..peers[donor].party.clone()
        };
        let permit = crossing::control_planes(&peers[receiver].party, &party);
        assert!(
            !matches!(permit, Ok(Permit::Proved(_))) || (are_control_planes && !only_signs),
            "{permit:?} between disks that are no control planes of one cluster"
        );
        let peer = Rc::new(Peer {
            party,
            ..peers[donor].clone()
        });
        let context = Context {
            guest: &disks[receiver].guest,
            node: &nodes[receiver],
            settings: &settings,
            peers: &[peer],
            ui: &Silent,
            facts: &Facts::default(),
        };
        let plan = plan::plan(&context, &[]);
        for change in &plan.prepared.changes {
            let Change::Write { content, path, .. } = change else {
                continue;
            };
            let text = String::from_utf8_lossy(content.expose());
            judge(
                &text,
                &path.to_string(),
                [&disks[receiver], &disks[donor]],
                are_control_planes && !only_signs,
            );
        }
    }
}

/// What is written to the receiver: no key of the donor's, and no certificate that only the donor's
/// CA key can have made, unless proved.
fn judge(text: &str, path: &str, [receiver, donor]: [&Disk; 2], is_permitted: bool) {
    let has = |key: &String| text.contains(key.as_str()) || text.contains(&base64(key));
    let stolen = donor
        .keys
        .iter()
        .filter(|key| !receiver.keys.contains(key))
        .any(has);
    assert!(
        !stolen || is_permitted,
        "{path} gets a key of the other disk"
    );
    for (number, ca) in pool().authorities.iter().enumerate() {
        let Some(ca) = parsed(&ca.certificate) else {
            continue;
        };
        if receiver.has_ca_key[number] {
            continue;
        }
        for certificate in Certificate::all_from_pem(text.as_bytes()).unwrap_or_default() {
            let known = pool()
                .leaves
                .iter()
                .any(|(certificates, _)| certificates[number] == certificate.to_pem());
            if known || certificate.is_ca || certificate.signed_by(&ca) != SignatureCheck::Valid {
                continue;
            }
            let node = crate::pki::trust::standing::node_of(&certificate);
            let is_own = node.is_some_and(|node| receiver.nodes[number].contains(node));
            let is_control_planes =
                receiver.is_control_plane[number] && (node.is_some() || is_permitted);
            assert!(
                is_own || is_control_planes,
                "{path} gets a certificate for {}",
                certificate.subject
            );
        }
    }
}

/// Some disks with etcd members of shuffled true and forged claims: who gives history to whom keeps
/// the rules.
///
/// # Panics
/// Where a rule is broken.
pub fn trust_etcd(data: &[u8]) {
    let mut choices = Choices(data);
    let claims: Vec<Claim> = (0..=choices.of(6))
        .map(|number| claim(&mut choices, number))
        .collect();
    let decided = units(&claims);
    if let Some(broken) = broken_rule(&claims, &decided) {
        panic!("{broken}: {claims:#?} {decided:#?}");
    }
}

fn claim(choices: &mut Choices<'_>, number: usize) -> Claim {
    let url = |member: usize| format!("https://10.0.0.{member}:2380");
    let id = choices.of(5);
    let mut list = Vec::new();
    for member in (0..5)
        .filter(|_| choices.of(2) == 0)
        .collect::<Vec<usize>>()
    {
        let at = if choices.of(4) == 0 {
            choices.of(5)
        } else {
            member
        };
        list.push(Listed {
            id: member as u64,
            urls: vec![url(at)],
            is_learner: choices.of(4) == 0,
        });
    }
    let cluster = [None, Some(8), Some(9), Some(9)][choices.of(4)];
    let initial = (0..5)
        .filter(|_| choices.of(2) == 0)
        .collect::<Vec<usize>>();
    Claim {
        shown: format!("m{number}"),
        trust_flag: format!("--trust m{number}"),
        is_trusted: choices.of(8) == 0,
        uses_tls: choices.of(4) > 0,
        proven: (0..choices.of(3))
            .map(|_| vec![choices.of(3) as u8])
            .collect(),
        cluster,
        id: cluster.is_some().then_some(id as u64),
        list,
        urls: vec![url(id)],
        initial_urls: initial.into_iter().map(url).collect(),
        holds_writes: choices.of(4) > 0,
        is_whole: choices.of(3) > 0,
        rank: (choices.of(3) as u64, choices.of(5) as u64),
    }
}

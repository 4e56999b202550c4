//! kubelet-files: a file that the kubelet's configuration names, and that it must open at its
//! start, is missing or damaged.
//!
//! So far the client CA: "unable to load client CA file" (NewDynamicCAContentFromFile, called in
//! cmd/kubelet/app/auth.go and server.go). The pair that it serves with is looked at by the check
//! `certificates`, its kubeconfig too.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::base::yaml;
use crate::change::Prepared;
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{GuestPath, Origin};
use crate::kubeconfig::Kubeconfig;
use crate::node::{Node, Role};
use crate::pki::cluster_ca::shown;
use crate::pki::inventory::trusted_by;
use crate::pki::x509::certificate::{Certificate, SignatureCheck};

const CLIENT_CA: Mode = Mode::stops_boot(
    "kubelet-files.client-ca",
    "the client CA file that the kubelet opens at its start is missing or damaged",
)
.why("The kubelet opens the file at its start and exits: \"unable to load client CA file\".")
.done(
    "Writes it again from kubelet.conf, where a certificate of this node proves that \
    this is the cluster's CA. Else says from where to copy it.",
)
.source("NewDynamicCAContentFromFile, called in cmd/kubelet/app/auth.go and server.go")
.logged(&["unable to load client CA file"]);

/// See the module.
pub const CHECK: Check = Check {
    id: "kubelet-files",
    about: "the client CA file that the kubelet must open at its start: missing or damaged; \
            brought back from kubelet.conf",
    modes: &[CLIENT_CA],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &[],
    run,
};

/// Kubeconfigs that carry the cluster's CA, beside the kubelet's own.
const KUBECONFIGS: [&str; 4] = [
    "/etc/kubernetes/bootstrap-kubelet.conf",
    "/etc/kubernetes/controller-manager.conf",
    "/etc/kubernetes/scheduler.conf",
    "/etc/kubernetes/admin.conf",
];

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    // With several control planes in the run, shared-keys copies the file from the one that has it.
    let has_lenders = !context.peers.is_empty();
    if has_lenders && context.node.role.value == Some(Role::ControlPlane) {
        return Ok(Vec::new());
    }
    let Some((path, named_at)) = client_ca(context.node) else {
        return Ok(Vec::new());
    };
    if context.guest.hidden(&path).is_some() {
        return Ok(Vec::new());
    }
    let Some((title, saw)) = fault(context, &path) else {
        return Ok(Vec::new());
    };
    let finding = Finding::new(
        CLIENT_CA,
        format!("{path} {title}, and the kubelet must open it"),
    )
    .with_evidence(&path, saw)
    .with_evidence(named_at, "names it as the client CA")
    .with_advice("The kubelet exits at its start: \"unable to load client CA file\".");
    Ok(vec![match proved_copy(context) {
        Some(copy) => finding.with_remedy(WriteAuthority { path, copy }),
        None => finding.with_advice(format!(
            "No CA certificate on this disk is proved to be the cluster's. Copy the file from \
             another node of the cluster: scp NODE:{path} {path}"
        )),
    }])
}

/// The file and what names it: the flag wins over the configuration.
fn client_ca(node: &Node) -> Option<(GuestPath, Option<Origin>)> {
    let kubelet = &node.kubelet;
    let flag = "--client-ca-file";
    if let Some(path) = kubelet.flag(flag).filter(|path| path.starts_with('/')) {
        return Some((GuestPath::new(path), kubelet.flag_origin(flag)));
    }
    let keys = ["authentication", "x509", "clientCAFile"];
    let path = yaml::text_at(&kubelet.config, &keys).filter(|path| path.starts_with('/'))?;
    let config = kubelet.config_path.value.clone().map(Origin::from);
    Some((GuestPath::new(path), config))
}

fn fault(context: &Context<'_>, path: &GuestPath) -> Option<(&'static str, String)> {
    match context.guest.read(path) {
        Err(error) if error.is_not_found() => Some(("is missing", "missing".to_owned())),
        Err(error) => Some(("cannot be read", error.to_string())),
        Ok(bytes) if bytes.trim_ascii().is_empty() => Some(("is empty", "empty".to_owned())),
        Ok(bytes) => match Certificate::all_from_pem(&bytes) {
            Ok(_) => None,
            Err(error) => Some(("is damaged", format!("{error:#}"))),
        },
    }
}

/// CA certificates of a kubeconfig, and what proves them.
#[derive(Debug)]
struct KeptAuthority {
    pem: String,
    from: GuestPath,
    proof: String,
}

/// The first kubeconfig whose CA certificates are CAs, one of which signed a certificate of this
/// node.
fn proved_copy(context: &Context<'_>) -> Option<KeptAuthority> {
    let own = context.node.kubelet.kubeconfig.value.clone();
    let others = KUBECONFIGS.iter().map(GuestPath::new);
    let leaves = leaves(context);
    own.into_iter().chain(others).find_map(|from| {
        let bytes = context.guest.read(&from).ok()?;
        let config = Kubeconfig::parse(&bytes, &from).ok()?;
        let authorities = trusted_by(context.guest, &config);
        let are_authorities = authorities.iter().all(Certificate::may_sign);
        let (place, signer) = authorities.iter().find_map(|authority| {
            let signed = |(_, leaf): &&(String, Certificate)| {
                leaf.signed_by(authority) == SignatureCheck::Valid
            };
            Some((&leaves.iter().find(signed)?.0, authority))
        })?;
        are_authorities.then(|| KeptAuthority {
            pem: authorities.iter().map(Certificate::to_pem).collect(),
            proof: format!("{} signed {place}", shown(signer)),
            from,
        })
    })
}

/// Certificates of this node, each with its place: the kubelet's own first.
fn leaves(context: &Context<'_>) -> Vec<(String, Certificate)> {
    let inventory = context.inventory();
    let kubelet = inventory.kubelet.as_ref().and_then(|client| {
        let certificate = client.certificate.clone()?;
        Some((client.path().to_string(), certificate))
    });
    let apiserver = context.node.certificate_dir.value.as_ref();
    let apiserver = apiserver.and_then(|folder| {
        let path = folder.join("apiserver.crt");
        let all = Certificate::all_from_pem(&context.guest.read(&path).ok()?).ok()?;
        Some((path.to_string(), all.into_iter().next()?))
    });
    kubelet.into_iter().chain(apiserver).collect()
}

/// The file is written again from a kubeconfig.
#[derive(Debug)]
struct WriteAuthority {
    path: GuestPath,
    copy: KeptAuthority,
}

impl Remedy for WriteAuthority {
    fn kind(&self) -> &'static str {
        "write-client-ca"
    }

    fn summary(&self) -> String {
        format!("write {} again from {}", self.path, self.copy.from)
    }

    fn details(&self) -> Vec<String> {
        vec![format!("it is the cluster's CA: {}", self.copy.proof)]
    }

    fn fields(&self) -> Map<String, Value> {
        let field = |name: &str, path: &GuestPath| (name.to_owned(), json!(path.to_string()));
        Map::from_iter([field("path", &self.path), field("from", &self.copy.from)])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        draft.write_like(&self.path, self.copy.pem.as_bytes(), 0o644, &self.path)?;
        Ok(draft.done())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::checks::bench::{Bench, control_plane, worker};
    use crate::tree::MemoryTree;

    const FILE: &str = "/etc/kubernetes/pki/ca.crt";
    const CONFIG: &str = "kind: KubeletConfiguration\nauthentication:\n  x509:\n    \
        clientCAFile: /etc/kubernetes/pki/ca.crt\n";

    /// A CA and a certificate that it signed.
    struct Pair {
        ca: String,
        leaf: String,
    }

    fn pair(is_authority: bool) -> Pair {
        let key = || rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let named = |name: &str| {
            let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
            parameters.distinguished_name = rcgen::DistinguishedName::new();
            let common_name = rcgen::DnType::CommonName;
            parameters.distinguished_name.push(common_name, name);
            parameters
        };
        let (ca_key, mut authority) = (key(), named("kubernetes"));
        if is_authority {
            authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        let ca = authority.self_signed(&ca_key).unwrap().pem();
        let issuer = rcgen::Issuer::from_params(&authority, &ca_key);
        let leaf = named("system:node:w1").signed_by(&key(), &issuer).unwrap();
        Pair {
            ca,
            leaf: leaf.pem(),
        }
    }

    /// A worker whose kubelet.conf trusts `ca` and presents `leaf`; the file itself is missing.
    fn node(ca: &str, leaf: &str) -> MemoryTree {
        let conf = format!(
            "kind: Config\ncurrent-context: c\n\
             contexts:\n- name: c\n  context: {{cluster: k, user: u}}\n\
             clusters:\n- name: k\n  cluster: {{certificate-authority-data: {}}}\n\
             users:\n- name: u\n  user: {{client-certificate-data: {}}}\n",
            STANDARD.encode(ca),
            STANDARD.encode(leaf)
        );
        worker()
            .file("/var/lib/kubelet/config.yaml", CONFIG)
            .file("/etc/kubernetes/kubelet.conf", conf)
    }

    #[test]
    fn a_lost_or_damaged_file_comes_back_from_kubelet_conf() {
        let bench = Bench::new(CHECK);
        let pair = pair(true);
        let lost = node(&pair.ca, &pair.leaf);
        let empty = lost.clone().file(FILE, "\n");
        let zeroed = lost.clone().file(FILE, [0; 64]);
        for tree in [lost, empty, zeroed] {
            assert_eq!(bench.modes(tree.clone()), ["kubelet-files.client-ca"]);
            let mended = bench.mended(tree);
            let text = mended.read(&GuestPath::new(FILE)).unwrap();
            let written = Certificate::all_from_pem(&text).unwrap();
            assert_eq!(
                written,
                Certificate::all_from_pem(pair.ca.as_bytes()).unwrap()
            );
        }
    }

    #[test]
    fn what_is_not_proved_is_not_written() {
        let bench = Bench::new(CHECK);
        let (own, other, leaf_only) = (pair(true), pair(true), pair(false));
        for tree in [
            node(&other.ca, &own.leaf),
            node(&leaf_only.ca, &leaf_only.leaf),
            node("", &own.leaf),
        ] {
            let found = bench.found(tree);
            assert!(found[0].remedies.is_empty(), "{found:?}");
            assert!(
                found[0]
                    .advice
                    .iter()
                    .any(|line| line.contains("scp NODE:"))
            );
        }
    }

    #[test]
    fn a_whole_file_and_a_kubelet_that_names_none_are_no_finding() {
        let bench = Bench::new(CHECK);
        let pair = pair(true);
        bench.silent(node(&pair.ca, &pair.leaf).file(FILE, &pair.ca));
        bench.silent(worker());
        bench.silent(control_plane());
        // The flag wins: another file is opened.
        let flags = "KUBELET_KUBEADM_ARGS=\"--client-ca-file=/etc/own-ca.crt\"\n";
        let by_flag = node(&pair.ca, &pair.leaf)
            .file("/var/lib/kubelet/kubeadm-flags.env", flags)
            .file("/etc/own-ca.crt", &pair.ca);
        bench.silent(by_flag);
    }
}
